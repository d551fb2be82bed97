"""An image that stands inside its record, not in a file of its own."""

import base64
import hashlib
from dataclasses import dataclass, field

from megatron_sts.errors import DataError, shown

LARGEST_EMBEDDED_BYTES = 32 << 20

Place = tuple[str | int, ...]
"""The keys and positions that lead to a value inside a record."""


def field_of(place: Place) -> str:
    """A place as messages name it: `messages[0].content[1].image_url.url`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """The bytes of an image file, or their base64 with or without the head of a data url; decoded when it is read."""

    place: Place
    content: str | bytes = field(repr=False)

    def read(self) -> bytes:
        """The bytes of the image file. Raises DataError where the text is no base64."""
        if isinstance(self.content, bytes):
            return self.content
        text = self.content[self.content.find(",") + 1 :] if self.content.startswith("data:") else self.content
        # Line breaks as in mail, the alphabet of urls, and padding that was left out are what writers differ in.
        text = "".join(text.split())
        if "-" in text or "_" in text:
            text = text.replace("-", "+").replace("_", "/")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError as error:
            raise DataError(f"{self}: is no base64 that can be decoded ({error}); write it again") from error

    @property
    def digest(self) -> bytes:
        """A short name for the content, to keep in place of it."""
        content = self.content.encode(errors="surrogatepass") if isinstance(self.content, str) else self.content
        return hashlib.blake2b(content, digest_size=16).digest()

    def __str__(self) -> str:
        """Where it stands and how it begins: never the whole of it."""
        begins = shown(self.content[:40])
        return f"{field_of(self.place)}: an image inside the record ({begins}, {len(self.content):,} long)"

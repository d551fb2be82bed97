"""Shows how a micro-batch is laid out, by hand: image slots, shifted labels, padding, image places."""

import pytest
import torch

from megatron_sts.data import Encoded, RawItem, collate

IMAGE, PAD = 9, 0


def picture(value: float) -> torch.Tensor:
    return torch.full((3, 2, 2), float(value))


def test_a_batch_by_hand() -> None:
    one = Encoded([1, IMAGE, 5, 6], [-100, -100, 5, 6])
    two = Encoded([1, IMAGE, 7, IMAGE, 8], [-100, -100, -100, -100, 8])
    batch = collate(
        [RawItem(one, [picture(1)], 4), RawItem(two, [picture(2), picture(3)], 7, [5, 6])], 3, 10, IMAGE, PAD
    )
    assert batch.tokens.tolist() == [
        [1, 9, 9, 9, 5, 6, 0, 0, 0, 0],
        [1, 9, 9, 9, 7, 9, 9, 9, 8, 0],
    ]
    assert batch.labels.tolist() == [
        [-100, -100, -100, 5, 6, -100, -100, -100, -100, -100],
        [-100, -100, -100, -100, -100, -100, -100, 8, -100, -100],
    ]
    assert batch.image_rows.tolist() == [0, 1, 1]
    assert batch.image_starts.tolist() == [1, 1, 5]
    assert batch.visual_tokens == 3
    assert batch.image_samples.tolist() == [[4, 0], [7, 0], [7, 1]]
    assert batch.guides.tolist() == [[-1, -1], [5, 6], [5, 6]]
    assert batch.pixels is not None
    assert batch.pixels.shape == (3, 3, 2, 2) and batch.pixels.dtype == torch.float32
    assert batch.pixels[:, 0, 0, 0].tolist() == [1, 2, 3]
    for tensor in (batch.tokens, batch.labels, batch.image_rows, batch.image_starts):
        assert tensor.dtype == torch.int64


def test_packed_samples_begin_at_multiples() -> None:
    one, two = Encoded([1, IMAGE, 5, 6], [-100, -100, 5, 6]), Encoded([IMAGE, 8], [-100, 8])
    batch = collate([RawItem(one, None), RawItem(two, None)], 2, 14, IMAGE, PAD, packed=True, multiple=4)
    assert batch.tokens.tolist() == [[1, 9, 9, 5, 6, 0, 0, 0, 9, 9, 8, 0, 0, 0]]
    # Neither a sample's last token nor its padding predicts the next sample.
    assert batch.labels.tolist() == [[-100, -100, 5, 6, *[-100] * 5, 8, *[-100] * 4]]
    assert batch.image_starts.tolist() == [1, 8]


def test_the_first_answer_token_is_predicted_at_the_last_image_slot() -> None:
    batch = collate([RawItem(Encoded([IMAGE, 4], [-100, 4]), None)], 5, 6, IMAGE, PAD)
    assert batch.labels.tolist() == [[-100, -100, -100, -100, 4, -100]]


def test_a_batch_may_fill_its_length_exactly() -> None:
    batch = collate([RawItem(Encoded([3, 4], [3, 4]), [])], 5, 2, IMAGE, PAD)
    assert batch.tokens.tolist() == [[3, 4]]
    # Nothing predicts the first token, and the last position has nothing left to predict.
    assert batch.labels.tolist() == [[4, -100]]


def test_without_pixels_the_layout_is_the_same() -> None:
    encoded = Encoded([1, IMAGE, 5], [-100, -100, 5])
    with_pixels = collate([RawItem(encoded, [picture(1)])], 2, 6, IMAGE, PAD)
    without = collate([RawItem(encoded, None)], 2, 6, IMAGE, PAD)
    assert without.pixels is None
    assert torch.equal(with_pixels.tokens, without.tokens) and torch.equal(with_pixels.labels, without.labels)
    assert torch.equal(with_pixels.image_starts, without.image_starts)


def test_pictures_of_other_ranks_have_slots_and_no_pixels() -> None:
    encoded = Encoded([IMAGE, IMAGE, 5], [-100, -100, 5])
    items = [RawItem(encoded, [None, picture(2)]), RawItem(encoded, [picture(3), None])]
    batch = collate(items, 2, 6, IMAGE, PAD)
    assert batch.pixels is not None and batch.pixels[:, 0, 0, 0].tolist() == [2, 3]
    assert batch.image_rows.tolist() == [0, 0, 1, 1]
    blank = items[0].blank().pictures
    assert blank is not None and blank[0] is None and blank[1] is not None and not blank[1].any()


def test_text_alone_has_no_images() -> None:
    batch = collate([RawItem(Encoded([1, 5], [-100, 5]), [])], 2, 4, IMAGE, PAD)
    assert batch.pixels is None
    assert batch.image_rows.shape == batch.image_starts.shape == (0,)


def test_a_row_longer_than_the_step_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="5 positions do not fit the step's length 4"):
        collate([RawItem(Encoded([1, IMAGE], [-100, -100]), None)], 4, 4, IMAGE, PAD)


def test_pictures_that_do_not_match_the_marks_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="2 pictures for 1 images"):
        collate([RawItem(Encoded([IMAGE], [-100]), [picture(1), picture(2)])], 1, 4, IMAGE, PAD)


def test_packed_samples_lie_end_to_end_and_none_predicts_the_next() -> None:
    one = RawItem(Encoded([IMAGE, 5, 6], [-100, 5, 6]), [picture(1)], 4)
    two = RawItem(Encoded([7, 1, IMAGE, 8], [7, -100, -100, 8]), [picture(2)], 2)
    batch = collate([one, two], 2, 10, IMAGE, PAD, packed=True)
    assert batch.tokens.tolist() == [[9, 9, 5, 6, 7, 1, 9, 9, 8, 0]]
    # Where 6 stands, the 7 of the next sample is not a target.
    assert batch.labels.tolist() == [[-100, 5, 6, -100, -100, -100, -100, 8, -100, -100]]
    assert batch.image_rows.tolist() == [0, 0] and batch.image_starts.tolist() == [0, 6]
    assert batch.image_samples.tolist() == [[4, 0], [2, 0]]


def test_weights_stand_where_their_labels_do() -> None:
    weighted = Encoded([1, IMAGE, 5, 6], [-100, -100, 5, 6], [0, 0, 0.5, 2])
    plain = Encoded([IMAGE, 8], [-100, 8])
    batch = collate([RawItem(weighted, None), RawItem(plain, None)], 2, 6, IMAGE, PAD)
    assert batch.weights is not None and batch.weights.dtype == torch.float32
    assert batch.weights.tolist() == [[0, 0, 0.5, 2, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert torch.equal(batch.weights > 0, batch.labels != -100)
    packed = collate([RawItem(weighted, None), RawItem(plain, None)], 2, 13, IMAGE, PAD, packed=True, multiple=4)
    assert packed.weights is not None and packed.weights.tolist() == [[0, 0, 0.5, 2, *[0] * 5, 1, *[0] * 3]]
    assert torch.equal(packed.weights > 0, packed.labels != -100)
    # One that is blank weighs nothing; where no sample has weights, the labels say all.
    assert collate([RawItem(weighted, None).blank(), RawItem(plain, None)], 2, 6, IMAGE, PAD).weights is None
    assert collate([RawItem(plain, None)], 2, 6, IMAGE, PAD).weights is None

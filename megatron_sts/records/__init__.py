"""Where the records of a data file, or of webdataset shards, lie, and each of them when it is asked for.

Free of torch, for training and for planning. What is kept in memory is where records begin and how long they are: tens
of megabytes for LLaVA's 665,000, and none of their text.

    json_file       every record of a .json or .jsonl file, in one pass
    tar_members     every member of a tar file, in one pass, none extracted, what has no business there refused
    shards          every record of a directory of tar files
    record_places   the places of records, found once and kept
    stored_file     bytes of a file that stays as it was
"""

from megatron_sts.records.record_places import RecordPlaces, content_key, find_records
from megatron_sts.records.stored_file import Member, StoredFile

__all__ = ["Member", "RecordPlaces", "StoredFile", "content_key", "find_records"]

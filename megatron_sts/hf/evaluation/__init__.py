"""Evaluation of exported models.

records.py         json and json lines, with the place of every bad record
questions.py       LLaVA's question files and conversations
pope.py            POPE: files, its reading of answers, its figures
science_qa.py      ScienceQA: files, option letters
formats.py         the three of them under one interface, and which one a file is
score.py           exact match, and the interval of an accuracy
predictions.py     the file of answers: written as they come, taken up again
fingerprint.py     which model and which questions a file of answers belongs to
evaluate.py        puts them together
"""

from megatron_sts.hf.evaluation.evaluate import evaluate, format_table
from megatron_sts.hf.evaluation.formats import FORMATS
from megatron_sts.hf.evaluation.questions import Question, read_questions

__all__ = ["FORMATS", "Question", "evaluate", "format_table", "read_questions"]

"""What is done with an exported model: answers, and their evaluation. Needs that directory alone, and no megatron.

generate.py        answers to prompts about pictures
progress.py        how far it is, and the time that is left
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

from megatron_sts.evaluation.evaluate import evaluate, format_table
from megatron_sts.evaluation.formats import FORMATS
from megatron_sts.evaluation.generate import Generator, Request
from megatron_sts.evaluation.questions import Question, read_questions

__all__ = ["FORMATS", "Generator", "Question", "Request", "evaluate", "format_table", "read_questions"]

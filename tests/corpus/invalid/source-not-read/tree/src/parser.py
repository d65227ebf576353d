"""Reads lists of stages."""


def parse_stage_list(text):
    return text.split(",")

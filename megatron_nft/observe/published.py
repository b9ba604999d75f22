"""What the NFT paper and its authors publish (arXiv 2505.18116): accuracies in percent, and of which data files.

The tables of evaluations and reports take them (evaluation/table.py, evaluation_table.py).
"""

COLUMNS: dict[str, tuple[str, ...]] = {
    "AIME24": ("aime24", "aime2024"),
    "MATH500": ("math500",),
    "AIME25": ("aime25", "aime2025"),
    "AMC23": ("amc23", "amc2023"),
    "Olympiad": ("olympiad",),
    "Minerva": ("minerva",),
}
"""Column -> what a file's or data source's name contains, in lower case and without marks."""

GRADED_BY = {
    "AIME24": "strict_boxed",
    "MATH500": "whole_text",
    "AIME25": "strict_boxed",
    "AMC23": "strict_boxed",
    "Olympiad": "whole_text",
    "Minerva": "whole_text",
}
"""Column -> the mode of verdict/graders.py that grades as the authors do, by the data sources of their files."""

ROWS: dict[str, tuple[float, float, float, float, float, float, float]] = {
    "7B base": (13.3, 69.0, 5.5, 45.8, 34.7, 21.3, 31.6),
    "7B DPO": (29.8, 79.8, 13.8, 83.2, 48.0, 39.0, 48.9),
    "7B GRPO": (30.2, 80.4, 17.1, 79.5, 51.8, 38.2, 49.5),
    "7B Dr. GRPO": (31.8, 83.4, 15.7, 80.2, 49.6, 38.2, 49.8),
    "7B RFT": (33.7, 79.8, 13.4, 79.7, 44.3, 38.6, 48.3),
    "7B DAPO": (33.1, 81.6, 18.7, 85.0, 49.9, 39.3, 51.2),
    "7B NFT": (32.0, 83.2, 18.3, 88.5, 47.3, 40.8, 51.7),
    "32B base": (4.1, 68.6, 1.0, 45.0, 31.1, 27.9, 29.6),
    "32B RFT": (29.9, 86.2, 19.1, 92.4, 45.3, 44.1, 52.8),
    "32B DAPO": (44.1, 89.2, 33.4, 90.9, 54.1, 47.5, 59.9),
    "32B NFT": (37.8, 88.4, 31.5, 93.8, 55.0, 48.9, 59.2),
}
"""Method -> the columns, then their average. 7B: from Qwen2.5-Math-7B, 32B: from Qwen2.5-32B."""

SERIES_COLUMNS = ("AIME24", "Minerva", "Olympiad", "MATH500")
SERIES: dict[str, tuple[float | None, float, float, float, float]] = {
    "Qwen2.5-Math-7B": (None, 21.3, 34.7, 69.0, 35.1),  # its AIME24 can't be read; by the average it is 15.4
    "Qwen-DPO-R1-Zero": (26.7, 30.9, 37.9, 76.8, 43.1),
    "PRIME-7B-Zero": (16.7, 36.0, 40.9, 83.8, 44.3),
    "RAFT++": (20.0, 35.8, 41.2, 80.5, 44.4),
    "Eurus-2-7B-PRIME": (26.7, 38.6, 42.1, 79.2, 46.6),
    "Oat-7B-Zero": (43.3, 30.1, 41.0, 80.0, 48.6),
    "NFT-7B": (32.0, 40.8, 47.3, 83.2, 50.8),
}
"""Zero-shot models of the Qwen series beside NFT-7B (the authors' figure) -> SERIES_COLUMNS, then their average."""

UPDATES = 320 * 16
"""Optimizer updates of a published run."""
CURVES: dict[str, tuple[float, float]] = {
    f"{size} NFT": (ROWS[f"{size} base"][-1], ROWS[f"{size} NFT"][-1]) for size in ("7B", "32B")
}
"""Ends of the published validation curves: the average of the columns before the first update and after the last."""


def published_rows() -> list[list[str]]:
    """Rows of a table with COLUMNS and their average, as texts."""
    return [[f"{name} (published)", *(f"{value:.1f}" for value in values)] for name, values in ROWS.items()]


def series_rows() -> list[list[str]]:
    """Rows of a table with SERIES_COLUMNS and their average, as texts; "" where nothing is given."""
    return [
        [f"{name} (published)", *("" if value is None else f"{value:.1f}" for value in values)]
        for name, values in SERIES.items()
    ]


def column_of(*names: str) -> str | None:
    """The column that the first of the names which fits one stands for."""
    for name in names:
        plain = "".join(character for character in name.lower() if character.isalnum())
        for column, parts in COLUMNS.items():
            if any(part in plain for part in parts):
                return column
    return None

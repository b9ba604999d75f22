"""The NFT paper's main table (arXiv 2505.18116), accuracies in percent, and which data files its columns stand for."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "AIME24": ("aime24", "aime2024"),
    "MATH500": ("math500",),
    "AIME25": ("aime25", "aime2025"),
    "AMC23": ("amc23", "amc2023"),
    "Olympiad": ("olympiad",),
    "Minerva": ("minerva",),
}
"""Column -> what a file's or data source's name contains, in lower case and without marks."""

ROWS: dict[str, tuple[float, float, float, float, float, float, float]] = {
    "7B base": (13.3, 69.0, 5.5, 45.8, 34.7, 21.3, 31.6),
    "7B RFT": (33.7, 79.8, 13.4, 79.7, 44.3, 38.6, 48.3),
    "7B DAPO": (33.1, 81.6, 18.7, 85.0, 49.9, 39.3, 51.2),
    "7B NFT": (32.0, 83.2, 18.3, 88.5, 47.3, 40.8, 51.7),
    "32B base": (4.1, 68.6, 1.0, 45.0, 31.1, 27.9, 29.6),
    "32B RFT": (29.9, 86.2, 19.1, 92.4, 45.3, 44.1, 52.8),
    "32B DAPO": (44.1, 89.2, 33.4, 90.9, 54.1, 47.5, 59.9),
    "32B NFT": (37.8, 88.4, 31.5, 93.8, 55.0, 48.9, 59.2),
}
"""Method -> the columns, then their average. 7B: from Qwen2.5-Math-7B, 32B: from Qwen2.5-32B."""

AVERAGES: dict[str, float] = {"7B DPO": 48.9, "7B GRPO": 49.5, "7B Dr. GRPO": 49.8}
"""Methods of which only the average is given here."""


def published_rows() -> list[list[str]]:
    """Rows of a table with the columns and an average, as texts; "" where nothing is given."""
    rows = [[f"{name} (published)", *(f"{value:.1f}" for value in values)] for name, values in ROWS.items()]
    return rows + [[f"{name} (published)", *["" for _ in COLUMNS], f"{value:.1f}"] for name, value in AVERAGES.items()]


def column_of(*names: str) -> str | None:
    """The column that the first of the names which fits one stands for."""
    for name in names:
        plain = "".join(character for character in name.lower() if character.isalnum())
        for column, parts in COLUMNS.items():
            if any(part in plain for part in parts):
                return column
    return None

"""How a number looks wherever one is said: in tables, progress and errors alike."""


def numeral(value: float | int | None) -> str:
    """Whole numbers in full with commas, others with three digits that count and at
    most three decimals; a dash for None.
    """
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"

"""Equality of two answers to the same question, apart from what no two answers share."""

# Made anew by the engine for every answer: identifiers and clock readings.
EPHEMERAL = {
    "id",
    "item_id",
    "created",
    "created_at",
    "completed_at",
    "timings",
    # attributes the client libraries add
    "_request_id",
    "timestamp",
}


def plain(value):
    """The answer as plain data without ephemeral members, at any depth."""
    if hasattr(value, "model_dump"):
        # Unset fields are left out and unknown ones kept: this is what was on the wire.
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, dict):
        return {name: plain(member) for name, member in value.items() if name not in EPHEMERAL}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in value]
    return value


def text_of_chat(chunks) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])

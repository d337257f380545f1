# noqa: A005 - it mirrors the room of this name

//! Tests of the whole federation as processes; see `tests/`.

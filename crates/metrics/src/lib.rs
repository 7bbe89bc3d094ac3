//! Documentation follows.

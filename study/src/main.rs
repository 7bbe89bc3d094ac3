//! `medinet-study`: method studies on public images.

fn main() {}

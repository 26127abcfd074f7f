//! The `tailwater` command: everything is in the library.

fn main() {}

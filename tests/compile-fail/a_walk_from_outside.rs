//! The walks are the library's own: an embedder has operations, each of which keeps the protocol.

use stage2::walk::ReadWrite;

fn main() {}

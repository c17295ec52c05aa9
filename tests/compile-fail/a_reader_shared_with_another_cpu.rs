//! Nor can another CPU walk in its name.

use stage2::Reader;

fn send<T: Send>(_: T) {}

fn share(reader: &Reader) {
    send(reader);
}

fn main() {}

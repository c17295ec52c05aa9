//! A reader speaks for the CPU that claimed it.

use stage2::Reader;

fn send<T: Send>(_: T) {}

fn away(reader: Reader) {
    send(reader);
}

fn main() {}

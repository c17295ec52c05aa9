//! Where an operation's instructions are: by the function that a person has written, whatever the compiler has inlined it into.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use addr2line::Context;
use addr2line::object::{File, Object};
use anyhow::{Context as _, Result};
use serde::Serialize;

/// How many functions of an operation are told.
const MOST: usize = 16;

/// A function, and how many instructions of it one unit of an operation executes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Place {
    pub(super) function: String,
    pub(super) instructions: f64,
}

/// The functions of an image, by address.
pub(super) struct Names {
    names: BTreeMap<u64, String>,
}

impl Names {
    /// Those at `addresses` of the image at `path`.
    pub(super) fn of(path: &Path, addresses: impl Iterator<Item = u64>) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = File::parse(&*bytes)?;
        let context = Context::new(&file)?;
        // What is written in assembly has a symbol, and nothing else.
        let symbols = file.symbol_map();
        let symbol = |address| symbols.get(address).map_or("?", |symbol| symbol.name());
        let demangled = |address| addr2line::demangle_auto(symbol(address).into(), None);
        let mut names = BTreeMap::new();
        for address in addresses {
            let name = name(&context, address)?;
            names.insert(address, name.unwrap_or_else(|| shortened(&demangled(address))));
        }
        Ok(Self { names })
    }

    /// The functions with the most instructions, those first, of an operation that was done `units` times.
    pub(super) fn most(&self, times: &BTreeMap<u64, u64>, units: u64) -> Vec<Place> {
        let mut functions: BTreeMap<&str, u64> = BTreeMap::new();
        for (address, times) in times {
            let name = self.names.get(address).map_or("?", String::as_str);
            *functions.entry(name).or_default() += times;
        }
        let mut places: Vec<_> = functions.into_iter().collect();
        places.sort_by_key(|&(_, times)| std::cmp::Reverse(times));
        places.truncate(MOST);
        let place = |(function, times): (&str, u64)| Place {
            function: function.to_owned(),
            instructions: times as f64 / units as f64,
        };
        places.into_iter().map(place).collect()
    }
}

/// The innermost function at an address, if one is known: with the last parts of its path, without what the compiler adds.
fn name<R: addr2line::gimli::Reader>(context: &Context<R>, address: u64) -> Result<Option<String>> {
    let mut frames = context.find_frames(address).skip_all_loads()?;
    let function = match frames.next()? {
        Some(frame) => frame.function,
        None => None,
    };
    function.map(|function| Ok(shortened(&function.demangle()?))).transpose()
}

/// `a::b::<impl c::D<E>>::f::h0123456789abcdef` is `D::f`, and `a::b::f` is `b::f`.
fn shortened(name: &str) -> String {
    let name = match name.rsplit_once("::") {
        Some((path, hash)) if hash.len() == 17 && hash.starts_with('h') => path,
        _ => name,
    };
    // Types' own parameters say nothing here, and neither do the paths within them.
    let mut plain = String::new();
    let mut depth = 0usize;
    let mut start_of_part = true;
    for char in name.chars() {
        match char {
            // `<D as Trait>::f` or `<impl D>::f`: what is in the first brackets of a part is its name.
            '<' if start_of_part && depth == 0 => {}
            '<' => depth += 1,
            '>' if depth > 0 => depth -= 1,
            '>' => {}
            _ if depth > 0 => {}
            _ => plain.push(char),
        }
        start_of_part = plain.is_empty() || plain.ends_with("::") || plain.ends_with("impl ");
    }
    let plain = plain.replace("impl ", "");
    // Of `D as Trait`, D.
    let parts: Vec<&str> = plain.split("::").collect();
    let cleaned: Vec<&str> = parts.iter().map(|part| part.split(" as ").next().unwrap_or(part)).collect();
    let last = cleaned.len().saturating_sub(if plain.ends_with("{{closure}}") { 3 } else { 2 });
    cleaned[last..].join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short() {
        for (long, short) in [
            ("stage2::vmid::VmidAllocator::enter::h9e644c793fd04cca", "VmidAllocator::enter"),
            ("stage2::walk::rw::Locked<A,M>::replace::h91511c54bd0515fd", "Locked::replace"),
            ("stage2::stage2::map::<impl stage2::stage2::Stage2<A,M>>::lock_table", "Stage2::lock_table"),
            ("memcpy", "memcpy"),
            ("stage2::sync::word::Word::load::{{closure}}", "Word::load::{{closure}}"),
        ] {
            assert_eq!(shortened(long), short);
        }
    }

    #[test]
    fn the_largest_come_first() {
        let names = Names { names: BTreeMap::from([(4, "a".to_owned()), (8, "b".to_owned()), (12, "a".to_owned())]) };
        let places = names.most(&BTreeMap::from([(4, 10), (8, 30), (12, 30)]), 10);
        let told: Vec<_> = places.iter().map(|place| (place.function.as_str(), place.instructions)).collect();
        assert_eq!(told, [("a", 4.0), ("b", 3.0)]);
    }
}

//! The start of a safetensors file, and the index of a sharded one.

#![no_main]

use emberd::engine::checkpoint::{files, header};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(header) = header::parse(data) {
        for entry in header.entries.values() {
            assert!(data.get(entry.start..entry.start + entry.len).is_some(), "{entry:?}");
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = files::parse_index(text);
    }
});

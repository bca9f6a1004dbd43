//! `config.json` and `generation_config.json`.

#![no_main]

use emberd::engine::checkpoint::names::NESTED;
use emberd::engine::checkpoint::summary::Summary;
use emberd::engine::checkpoint::{Config, GenerationDefaults};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = Config::parse(text) else { return };
    let _ = GenerationDefaults::parse(text, &config);
    // Whatever is accepted can be summed up without overflow.
    let _ = Summary::new(&config, NESTED).memory(config.max_position_embeddings);
});

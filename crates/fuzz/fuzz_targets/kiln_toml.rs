//! kiln.toml, and the picture of what is wrong with it.
#![no_main]

use kiln_config::config::Config;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match Config::from_toml("kiln.toml", text) {
        Ok(config) => assert!(!config.fleets.is_empty()),
        Err(error) => assert!(!error.render(false).is_empty()),
    }
});

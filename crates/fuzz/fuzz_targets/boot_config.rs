//! An instance's user data.
#![no_main]

use kiln_config::boot::BootConfig;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(config) = BootConfig::from_json(text)
        && let Ok(written) = config.to_json()
    {
        assert_eq!(BootConfig::from_json(&written).ok(), Some(config), "what is written is read back");
    }
});

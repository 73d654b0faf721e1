//! A component document.
#![no_main]

libfuzzer_sys::fuzz_target!(|yaml: &str| {
    let _ = kiln_image::components::Document::parse(yaml);
});

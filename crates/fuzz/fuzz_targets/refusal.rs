//! What GitHub, or a proxy before it, refuses with: status, headers, body.
#![no_main]

use kiln_github::refusal;

libfuzzer_sys::fuzz_target!(|input: (u16, Vec<(u8, String)>, Vec<u8>)| {
    const NAMES: [&str; 7] = [
        "date",
        "location",
        "retry-after",
        "x-accepted-github-permissions",
        "x-github-request-id",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ];
    let (status, headers, body) = input;
    let headers = headers.iter().map(|(name, value)| (NAMES[usize::from(*name) % NAMES.len()], value.as_str()));
    let error = refusal("GET /app".to_owned(), 300 + status % 300, headers, &body);
    // Neither panics, whatever was said.
    let _ = (error.is_retryable(), error.hint(), error.to_string());
});

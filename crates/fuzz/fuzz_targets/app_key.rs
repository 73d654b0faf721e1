//! A private key's PEM: from a file, a secret, standard input.
#![no_main]

libfuzzer_sys::fuzz_target!(|pem: &[u8]| {
    if let Err(error) = kiln_github::AppKey::from_pem(pem) {
        // No byte of what might be a key is in the error.
        assert!(error.to_string().len() < 500);
    }
});

use std::sync::{Arc, Mutex};

use aws_credential_types::Credentials;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A KMS that signs, as `signature of ALIAS`, by these aliases alone.
async fn kms(signs: &'static [&'static str]) -> (aws_sdk_kms::Client, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move { serve(stream, signs, &seen).await });
        }
    });
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .endpoint_url(url)
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new("key", "secret", None, None, "test")))
        .build();
    (aws_sdk_kms::Client::from_conf(config), asked)
}

async fn serve(mut stream: TcpStream, signs: &[&str], asked: &Mutex<Vec<String>>) {
    let mut text = String::new();
    loop {
        let mut bytes = [0; 4096];
        let Ok(count @ 1..) = stream.read(&mut bytes).await else { return };
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if length.is_none_or(|length: usize| body.len() < length) {
            continue;
        }
        let key = serde_json::from_str::<serde_json::Value>(body).unwrap()["KeyId"].as_str().unwrap().to_owned();
        asked.lock().unwrap().push(key.clone());
        let (status, answer) = if signs.contains(&key.as_str()) {
            // "signed"
            ("200 OK", r#"{"Signature":"c2lnbmVk"}"#)
        } else {
            ("400 Bad Request", r#"{"__type":"AccessDeniedException","message":"not yet"}"#)
        };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        text.clear();
    }
}

const CURRENT: &str = "alias/kiln-acme-app-key";
const PREVIOUS: &str = "alias/kiln-acme-app-key-previous";

async fn signed(signs: &'static [&'static str], alias: &str) -> (Result<Vec<u8>, SignError>, Vec<String>) {
    let (client, asked) = kms(signs).await;
    let signer = Signer(Source::Kms { client, alias: alias.to_owned() });
    let signature = signer.sign(b"header.claims").await;
    let asked = asked.lock().unwrap().clone();
    (signature, asked)
}

#[tokio::test]
async fn the_former_key_signs_while_kms_does_not_see_the_aliass_new_key() {
    let (signature, asked) = signed(&[CURRENT], CURRENT).await;
    assert_eq!((signature.unwrap(), asked), (b"signed".to_vec(), vec![CURRENT.to_owned()]));
    let (signature, asked) = signed(&[PREVIOUS], CURRENT).await;
    assert_eq!((signature.unwrap(), asked), (b"signed".to_vec(), vec![CURRENT.to_owned(), PREVIOUS.to_owned()]));
    // Where neither is allowed it is the current one that is spoken of.
    let (signature, _) = signed(&[], CURRENT).await;
    assert_eq!(signature.unwrap_err().to_string(), format!("can't sign with {CURRENT}"));
    let (signature, asked) = signed(&[], PREVIOUS).await;
    assert!(signature.is_err());
    assert_eq!(asked, [PREVIOUS], "there is none before the previous one");
}

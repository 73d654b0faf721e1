//! Registering the GitHub App in a browser, by GitHub's manifest flow.
//!
//! Source: <https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-from-a-manifest>.
//!
//! A page of ours, on a port of this machine, leads to GitHub's form. GitHub sends the browser back to that port with a code,
//! which is exchanged for the App's ids and its key. The key is in memory only, until `rotate-key`'s own way has stored it.

use std::io::{BufRead as _, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use kiln_config::model::Organization;
use kiln_github::{AppClient, AppKey, ErrorKind};
use kiln_operations::rotate_key::USER_AGENT;
use kiln_operations::{Code, Error, init};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;
use zeroize::Zeroizing;

use crate::ui::Ui;

/// GitHub's own limit for the code; whoever needs longer begins again.
const PATIENCE: Duration = Duration::from_secs(3600);

/// So often GitHub is asked whether the App is installed.
const POLL: Duration = Duration::from_secs(2);

/// A browser sends its request at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A request of a browser's is shorter.
const MOST_BYTES: usize = 16 * 1024;

/// An App that was registered and installed.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) client_id: String,
    pub(crate) installation: u64,
    pub(crate) key: Arc<AppKey>,
}

/// What GitHub gives for a code.
#[derive(Deserialize)]
struct Converted {
    client_id: String,
    pem: SecretString,
    html_url: Url,
    owner: Owner,
}

#[derive(Deserialize)]
struct Owner {
    login: String,
}

/// What a request was for.
enum Came {
    /// The code, of our own `state`.
    Code(String, TcpStream),
    /// Something else, which is answered.
    Other,
}

pub(crate) async fn register(organization: &Organization, github: &Url, ui: &Ui) -> Result<Registered, Error> {
    let listener =
        TcpListener::bind("127.0.0.1:0").await.map_err(|error| failed("can't open a port").caused_by(error))?;
    let address = listener.local_addr().map_err(|error| failed("can't open a port").caused_by(error))?;
    let state = random()?;
    let page = init::manifest_page(github, organization, &format!("http://{address}/registered"), &state);
    ui.talk(&format!(
        "Open this page in a browser on this machine, and register the App there:\n  http://{address}/\n\
         From another machine: `ssh -L {port}:{address} …` first, and open the same. Or, when the browser ends at an address \
         that it can't open, paste that address here.",
        port = address.port()
    ));
    let address = address.to_string();
    let came = tokio::time::timeout(PATIENCE, code(&listener, &address, &state, &page));
    let (code, browser) = came.await.map_err(|_| failed("nobody registered the App within an hour"))??;
    let converted = convert(github, &code).await;
    let converted = match (converted, browser) {
        (Ok(converted), Some(stream)) => {
            let to = installation_page(&converted.html_url);
            answer(stream, "303 See Other", &format!("Location: {to}\r\n"), "").await;
            converted
        }
        (Err(error), Some(stream)) => {
            answer(stream, "502 Bad Gateway", "", "It did not work. The terminal says why.").await;
            return Err(error);
        }
        (converted, None) => converted?,
    };
    if !converted.owner.login.eq_ignore_ascii_case(organization.as_str()) {
        return Err(failed(&format!("the App was registered for {}, not for {organization}", converted.owner.login)));
    }
    let key = AppKey::from_pem(converted.pem.expose_secret().as_bytes())
        .map_err(|error| failed("GitHub's answer holds no key").caused_by(error))?;
    let key = Arc::new(key);
    ui.talk(&format!(
        "registered {}; install it for {organization}, if the browser is not there already:\n  {}",
        converted.html_url,
        installation_page(&converted.html_url)
    ));
    let installation = installed(github, organization, &converted.client_id, &key).await?;
    ui.talk(&format!("installed: {installation}"));
    Ok(Registered { client_id: converted.client_id, installation, key })
}

fn failed(what: &str) -> Error {
    Error::new(Code::AppNotRegistered, what)
        .hint("run `cargo xtask init --register` again; or register the App by hand and give its --client-id")
}

/// Source: <https://docs.github.com/en/apps/sharing-github-apps/sharing-your-github-app>.
fn installation_page(app: &Url) -> String {
    format!("{}/installations/new", app.as_str().trim_end_matches('/'))
}

/// 256 bits that nobody can guess.
fn random() -> Result<String, Error> {
    use std::io::Read as _;
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| failed("there are no random numbers").caused_by(error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The code, from the browser or pasted.
async fn code(
    listener: &TcpListener,
    address: &str,
    state: &str,
    page: &str,
) -> Result<(String, Option<TcpStream>), Error> {
    let mut pasted = pasted();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let came = tokio::time::timeout(REQUEST_TIMEOUT, request(stream, address, state, page)).await;
                if let Ok(Some(Came::Code(code, stream))) = came {
                    return Ok((code, Some(stream)));
                }
            }
            Some(line) = pasted.recv() => match in_pasted(&line, state) {
                Ok(code) => return Ok((code, None)),
                Err(what) => crate::ui::note(what),
            }
        }
    }
}

/// Lines from a terminal, until it ends.
fn pasted() -> tokio::sync::mpsc::Receiver<String> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    if std::io::stdin().is_terminal() {
        // A blocking read that can't be called off: the thread ends with the process.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

/// The code in an address that somebody pasted, or the code alone.
fn in_pasted(line: &str, state: &str) -> Result<String, &'static str> {
    let line = line.trim();
    let Ok(url) = Url::parse(line) else {
        let is_code = line.len() >= 8 && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        return if is_code { Ok(line.to_owned()) } else { Err("that is no address with a code in it") };
    };
    code_of(&url, state).ok_or("that address is not the one that GitHub led to from here")
}

/// The code of an address whose state is ours.
fn code_of(url: &Url, state: &str) -> Option<String> {
    let value = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let code = value("code").filter(|code| !code.is_empty())?;
    (value("state")? == state).then_some(code)
}

/// Reads a browser's request, and answers it unless it brings the code.
async fn request(mut stream: TcpStream, address: &str, state: &str, page: &str) -> Option<Came> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 2048];
        let read = stream.read(&mut buffer).await.ok()?;
        bytes.extend_from_slice(&buffer[..read]);
        if read == 0 || bytes.len() > MOST_BYTES {
            return None;
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let target = lines.next()?.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let host = lines.find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("host")));
    // A page elsewhere whose name leads here must not read ours.
    let ours = host.is_some_and(|(_, host)| host.trim() == address);
    let url = Url::parse(&format!("http://{address}{target}")).ok()?;
    match url.path() {
        _ if !ours => answer(stream, "421 Misdirected Request", "", "").await,
        "/" => answer(stream, "200 OK", "", page).await,
        "/registered" => match code_of(&url, state) {
            Some(code) => return Some(Came::Code(code, stream)),
            None => {
                answer(stream, "400 Bad Request", "", "This is not the answer to the page that was opened here.").await;
            }
        },
        _ => answer(stream, "404 Not Found", "", "").await,
    }
    Some(Came::Other)
}

async fn answer(mut stream: TcpStream, status: &str, headers: &str, body: &str) {
    let text = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
         Referrer-Policy: no-referrer\r\nCache-Control: no-store\r\nX-Frame-Options: DENY\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    // A browser that is gone needs no answer.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Exchanges the code. GitHub takes it once, within an hour.
async fn convert(github: &Url, code: &str) -> Result<Converted, Error> {
    let mut url = init::api_url(github);
    url.path_segments_mut().map_err(|()| failed("GitHub's address is none"))?.pop_if_empty().extend([
        "app-manifests",
        code,
        "conversions",
    ]);
    let unreachable =
        |error: reqwest::Error| failed("can't exchange the code at GitHub").caused_by(error.without_url());
    let client = reqwest::Client::builder().user_agent(USER_AGENT).timeout(Duration::from_secs(30)).build();
    let request = client.map_err(unreachable)?.post(url).header("accept", "application/vnd.github+json");
    let answer = request.send().await.map_err(unreachable)?;
    if answer.status() == reqwest::StatusCode::NOT_FOUND {
        return Err(failed("GitHub does not know the code: it was used already, or is older than an hour"));
    }
    let answer = answer.error_for_status().map_err(unreachable)?;
    let body = Zeroizing::new(answer.bytes().await.map_err(unreachable)?.to_vec());
    serde_json::from_slice(&body).map_err(|_| failed("GitHub's answer is not that of a registered App"))
}

/// Waits until an owner has installed the App.
async fn installed(
    github: &Url,
    organization: &Organization,
    client_id: &str,
    key: &Arc<AppKey>,
) -> Result<u64, Error> {
    let signer = Arc::clone(key);
    let client =
        AppClient::new(&init::api_url(github), USER_AGENT, client_id.to_owned(), signer).map_err(Error::from)?;
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            match client.org_installation(organization.as_str()).await {
                Ok(installation) => return Ok(installation.id),
                Err(error) if error.kind == ErrorKind::NotInstalled => tokio::time::sleep(POLL).await,
                Err(error) => return Err(Error::from(error)),
            }
        }
    });
    waited.await.map_err(|_| failed("the App was registered, but nobody installed it within an hour"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_taken_from_our_own_answer_only() {
        assert_eq!(
            in_pasted(" http://127.0.0.1:1/registered?code=abcdefgh12&state=s ", "s").as_deref(),
            Ok("abcdefgh12")
        );
        assert_eq!(in_pasted("abcdefgh12", "s").as_deref(), Ok("abcdefgh12"));
        for wrong in [
            "",
            "no code",
            "http://127.0.0.1:1/registered?code=abcdefgh12&state=other",
            "http://127.0.0.1:1/registered?state=s",
        ] {
            assert!(in_pasted(wrong, "s").is_err(), "{wrong}");
        }
    }
}

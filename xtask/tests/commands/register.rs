//! `init --register` in a real browser: Debian's chromium, driven by its chromedriver.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines};
use tokio::process::{Child, Command};

use crate::support::{World, quiet, world};

/// A browser starts within seconds; this is for a machine under load.
const SOON: Duration = Duration::from_secs(120);

/// The first line with a text in it.
async fn line<R: AsyncRead + Unpin>(lines: &mut Lines<BufReader<R>>, with: &str) -> String {
    let found = async {
        let mut before = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(with) {
                return line;
            }
            before.push_str(&line);
            before.push('\n');
        }
        panic!("it ended without {with:?}:\n{before}");
    };
    tokio::time::timeout(SOON, found).await.unwrap()
}

/// Asks something over HTTP: the status and the body.
async fn http(arguments: &[&str]) -> (String, String) {
    let output = Command::new("curl").args(["--silent", "--write-out", "\n%{http_code}"]).args(arguments).output();
    let text = String::from_utf8(output.await.unwrap().stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

/// A browser with one window.
struct Browser {
    driver: Child,
    session: String,
}

impl Browser {
    async fn start(folder: &Path) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts (Debian: apt install chromium-driver)");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let started = line(&mut lines, "started successfully on port ").await;
        let port = started.rsplit(' ').next().unwrap().trim_end_matches('.').to_owned();
        // Its output is read on, or it would block some day.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let options = json!({
            // Without a sandbox, since tests in containers run as root.
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     format!("--user-data-dir={}", folder.display())],
        });
        let wanted = json!({ "alwaysMatch": { "browserName": "chrome", "goog:chromeOptions": options } });
        let mut browser = Self { driver, session: format!("http://127.0.0.1:{port}/session") };
        let answer = browser.post("", &json!({ "capabilities": wanted })).await;
        browser.session = format!("{}/{}", browser.session, answer["sessionId"].as_str().unwrap());
        browser
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let (_, answer) =
            http(&["--header", "Content-Type: application/json", "--data", &body.to_string(), &url]).await;
        let mut answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{url}: {answer}"));
        assert!(answer["value"]["error"].is_null(), "{url}: {:#}", answer["value"]);
        answer["value"].take()
    }

    /// Clicks what has this id, once it is on the page.
    async fn click(&self, id: &str) {
        self.post("/timeouts", &json!({ "implicit": 30_000 })).await;
        let found = self.post("/element", &json!({ "using": "css selector", "value": format!("#{id}") })).await;
        let element = found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        self.post(&format!("/element/{element}/click"), &json!({})).await;
    }

    async fn close(mut self) {
        http(&["--request", "DELETE", &self.session]).await;
        self.driver.kill().await.unwrap();
    }
}

/// Every file below a folder that holds a private key, but for the emulator's own.
fn keys_on_disk(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.ends_with("aws/ministack") {
            continue;
        }
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => keys_on_disk(&path, found),
            Ok(metadata) if metadata.is_file() => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                if bytes.windows(11).any(|part| part == b"PRIVATE KEY") {
                    found.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
}

fn init(world: &World) -> Command {
    let (region, url) = (world.aws.region(), world.github.url());
    let network = "vpc-00000001:subnet-00000001,subnet-00000002";
    let organization = world.github.organization();
    world.command(&[
        "init",
        "--register",
        "--organization",
        organization,
        "--region",
        region,
        "--github-url",
        &url,
        "--network",
        network,
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_registered_and_installed_in_a_browser_and_its_key_is_in_no_file() {
    let world = world().await;
    let mut child = init(&world).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let page = line(&mut lines, "  http://127.0.0.1:").await.trim().to_owned();

    // Neither another page's answer nor a page of another name is taken for ours.
    let forged = format!("{page}registered?code=stolen00&state=guessed");
    assert_eq!(http(&[&forged]).await.0, "400");
    assert_eq!(http(&["--header", "Host: elsewhere.example", &page]).await.0, "421");

    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::start(profile.path()).await;
    browser.post("/url", &json!({ "url": page })).await;
    browser.click("register").await;
    browser.click("create").await;
    // GitHub sent the browser back, and from there it is led to the App's installation.
    browser.click("install").await;
    let rest = async {
        let mut rest = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            rest.push_str(&line);
            rest.push('\n');
        }
        (child.wait().await.unwrap(), rest)
    };
    let (status, said) = tokio::time::timeout(SOON, rest).await.unwrap();
    assert!(status.success(), "{said}");
    browser.close().await;

    let text = std::fs::read_to_string(world.config()).unwrap();
    assert!(!text.contains(&world.github.client_id()) && text.contains("client_id = \"Iv23li"), "{text}");
    assert!(text.contains(&format!("installation_id = {}", world.github.installation_id())), "{text}");
    let status = world.run(&["rotate-key", "--status"], quiet).await.unwrap().success().unwrap();
    assert!(status.stdout.contains("current"), "{}", status.stdout);
    let mut found = Vec::new();
    keys_on_disk(&world.path(""), &mut found);
    assert!(found.is_empty(), "{found:?}");
    assert!(!said.contains("PRIVATE KEY"), "{said}");
    world.shutdown().await.unwrap();
}

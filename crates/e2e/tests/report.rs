//! The report in a real browser: Debian's chromium, driven by its chromedriver over the WebDriver protocol.
//!
//! `KILN_REPORT` names a report to be opened beside the made-up one; continuous integration names the rehearsal's own.
//! `KILN_SCREENSHOTS` names a folder for pictures of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use kiln_e2e::report::{Boot, Calls, Plan, Ran, Report, Span, SpanKind, Step};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A browser starts within seconds; this is for a machine under load.
const SOON: Duration = Duration::from_secs(120);

/// What a page must not have, seen from inside it: the charts' bars with their sizes, the widths, the colours.
const LOOK: &str = r#"
document.querySelectorAll('details').forEach(details => { details.open = true; });
const bars = [...document.querySelectorAll('.chart')].map(chart => ({
  id: chart.id,
  rows: chart.querySelectorAll('.row').length,
  bars: [...chart.querySelectorAll('svg.bar')].map(svg => {
    const parts = [...svg.querySelectorAll('rect:not(.track)')].map(rect => rect.getBoundingClientRect());
    const box = svg.getBoundingClientRect();
    return {
      width: box.width, height: box.height, parts: parts.length,
      seen: parts.every(part => part.width > 0 && part.height > 0),
      inside: parts.every(part => part.left >= box.left - 1 && part.right <= box.right + 2),
    };
  }),
}));
const brightness = color => color.match(/[\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
const style = getComputedStyle(document.body);
return {
  bars, title: document.title, text: document.body.innerText,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  ground: brightness(style.backgroundColor), ink: brightness(style.color),
  loaded: performance.getEntriesByType('resource').map(entry => entry.name),
};
"#;

/// A browser with one window.
struct Browser {
    driver: Child,
    client: reqwest::Client,
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
        let port = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').to_owned();
                }
            }
            panic!("chromedriver named no port");
        };
        let port = tokio::time::timeout(SOON, port).await.unwrap();
        // Its output is read on, or it would block some day.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
        let options = json!({
            // Without a sandbox, since tests in containers run as root.
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     format!("--user-data-dir={}", folder.join("profile").display())],
        });
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let base = format!("http://127.0.0.1:{port}/session");
        let answer = post(&client, &base, capabilities).await;
        let session = format!("{base}/{}", answer["sessionId"].as_str().unwrap());
        Self { driver, client, session }
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        post(&self.client, &format!("{}/{path}", self.session), body).await
    }

    /// As a device of that size would show it, in light or dark.
    async fn device(&self, width: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    async fn open(&self, page: &Path) {
        self.command("url", json!({ "url": format!("file://{}", page.display()) })).await;
    }

    async fn look(&self) -> Value {
        self.command("execute/sync", json!({ "script": LOOK, "args": [] })).await
    }

    /// What the console said since the last time.
    async fn console(&self) -> Vec<String> {
        let entries = self.command("se/log", json!({ "type": "browser" })).await;
        entries.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// The whole page, however long.
    async fn screenshot(&self, path: &Path) {
        let picture = json!({ "format": "png", "captureBeyondViewport": true });
        let answer = self.devtools("Page.captureScreenshot", picture).await;
        let png = base64::engine::general_purpose::STANDARD.decode(answer["data"].as_str().unwrap()).unwrap();
        std::fs::write(path, png).unwrap();
    }

    async fn close(mut self) {
        let _ = self.client.delete(&self.session).send().await;
        self.driver.kill().await.unwrap();
    }
}

async fn post(client: &reqwest::Client, url: &str, body: Value) -> Value {
    let mut answer: Value = client.post(url).json(&body).send().await.unwrap().json().await.unwrap();
    assert!(answer["value"]["error"].is_null(), "{url}: {:#}", answer["value"]);
    answer["value"].take()
}

/// A rehearsal as it might have gone, with text that would break a page which trusts it.
fn made_up() -> Report {
    let span = |at, took, what: &str, kind| Span {
        at: Duration::from_millis(at),
        took: Duration::from_millis(took),
        what: what.to_owned(),
        kind,
    };
    let long = format!("cargo xtask rotate-key --pem /tmp/{}/first.pem", "a-long-folder".repeat(12));
    let plan = Plan {
        subject: "fleet <linux>".to_owned(),
        settled: None,
        steps: vec![Step {
            text: "update stack kiln-acme-linux".to_owned(),
            details: vec!["+ AmiId = ami-1".to_owned(), "- <script>document.title = 'taken'</script>".to_owned()],
        }],
    };
    let calls = |reads, mutations| Calls { reads, mutations, refused: 1 };
    Report {
        begun: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000),
        took: Duration::from_secs(40),
        failure: None,
        timeline: vec![
            span(0, 900, &long, SpanKind::Refused),
            span(1000, 15, "a job ran on linux-i-00000001", SpanKind::Event),
            span(2000, 20_000, "cargo xtask ami", SpanKind::Command),
            span(22_000, 18_000, "cargo xtask deploy --dry-run", SpanKind::DryRun),
        ],
        commands: vec![Ran {
            line: long,
            code: Some(0),
            took: Duration::from_secs(2),
            plans: vec![plan],
            calls: calls(12, 3),
            said: format!("error: \"&\" <b>{}</b>", "w".repeat(400)),
        }],
        boots: vec![Boot {
            runner: "linux-i-00000001".to_owned(),
            ms: 31,
            identify_ms: 6,
            configure_ms: 0,
            mint_ms: 14,
            register_ms: 9,
            cpu_ms: 4,
            peak_kib: 5_300,
            requests: 2,
        }],
        aws: BTreeMap::from([("kms".to_owned(), calls(30, 6)), ("sts".to_owned(), calls(1, 0))]),
        github: BTreeMap::from([("POST /orgs/rehearsal/actions/runners/registration-token".to_owned(), calls(0, 9))]),
    }
}

/// The page as every visitor gets it: nothing said in the console, nothing loaded, every bar to be seen.
fn check(seen: &Value, console: &[String], scheme: &str, width: u32) {
    assert_eq!(console, [""; 0], "{scheme} {width}");
    assert_eq!(seen["loaded"], json!([]), "{scheme} {width}");
    assert_eq!(seen["overflow"], 0, "{scheme} {width}: the page is wider than the window");
    let (ground, ink) = (seen["ground"].as_f64().unwrap(), seen["ink"].as_f64().unwrap());
    assert_eq!(ground > ink, scheme == "light", "{scheme}: ground {ground}, ink {ink}");
    assert!((ground - ink).abs() > 0.5, "{scheme}: text is hard to read: {ground} on {ink}");
    let charts = seen["bars"].as_array().unwrap();
    let names: Vec<_> = charts.iter().map(|chart| chart["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["timeline-chart", "boots-chart", "aws-chart", "github-chart"]);
    for chart in charts {
        let bars = chart["bars"].as_array().unwrap();
        assert!(!bars.is_empty() && chart["rows"] == bars.len(), "{chart}");
        for bar in bars {
            assert!(bar["width"].as_f64().unwrap() > 60.0 && bar["height"] == 16.0, "{} {bar}", chart["id"]);
            assert!(bar["parts"].as_u64().unwrap() > 0 && bar["seen"] == true && bar["inside"] == true, "{bar}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_shows_what_it_should_in_a_browser() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("made up/report.html");
    made_up().write(&page).unwrap();
    let browser = Browser::start(folder.path()).await;
    let given = std::env::var_os("KILN_REPORT").map(PathBuf::from);
    for (page, made_up) in std::iter::once((page, true)).chain(given.map(|page| (page, false))) {
        for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)] {
            browser.device(width, scheme).await;
            browser.open(&page).await;
            let seen = browser.look().await;
            check(&seen, &browser.console().await, scheme, width);
            assert_eq!(seen["title"], "Kiln's rehearsal succeeded", "the text of others is not run");
            let text = seen["text"].as_str().unwrap();
            for wanted in ["Timeline", "Boots", "Requests", "Commands", "succeeded", "cargo xtask ami"] {
                assert!(text.contains(wanted), "no {wanted} in {text}");
            }
            if let Some(pictures) = std::env::var_os("KILN_SCREENSHOTS") {
                let name = format!("{}-{scheme}-{width}.png", if made_up { "made-up" } else { "given" });
                browser.screenshot(&Path::new(&pictures).join(name)).await;
            }
        }
    }
    browser.close().await;
}

//! The emulator, ministack, and the stand-ins' own calls to it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::Client;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::REGION;

/// It is up within three seconds on a slow machine; half a minute is for one that is busy compiling.
const START_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub(crate) struct Backend {
    pub(crate) client: Client,
    pub(crate) url: String,
}

impl Backend {
    pub(crate) async fn start(executable: &Path, directory: &Path) -> anyhow::Result<(Child, Self)> {
        let port = free_port().await?;
        let log = std::fs::File::create(directory.join("ministack.log"))?;
        let state = directory.join("ministack");
        std::fs::create_dir_all(&state)?;
        // Ends with us, even if we are killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(executable);
        command
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("MINISTACK_REGION", REGION)
            // Two worlds side by side must not meet at its broker's fixed port, nor in its state.
            .env("IOT_MTLS_ENABLED", "0")
            .env("STATE_DIR", &state)
            .env("TMPDIR", &state)
            .current_dir(&state)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {}", executable.display()))?;
        let client = Client::builder().timeout(Duration::from_secs(30)).build().context("set up HTTP")?;
        let backend = Self { client, url: format!("http://127.0.0.1:{port}") };
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        loop {
            if let Ok(response) = backend.client.get(format!("{}/_ministack/health", backend.url)).send().await
                && response.status().is_success()
            {
                return Ok((child, backend));
            }
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(directory.join("ministack.log")).unwrap_or_default();
                bail!("ministack ended with {status}:\n{log}");
            }
            ensure!(tokio::time::Instant::now() < deadline, "ministack was not up within {} s", START_LIMIT.as_secs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The credential scope is what tells services apart.
    fn authorization(region: &str, service: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential=AKIASTANDIN000000000/20260101/{region}/{service}/aws4_request, \
             SignedHeaders=host, Signature=0"
        )
    }

    /// A call of the query protocol; its answer's XML.
    pub(crate) async fn query(&self, service: &str, action: &str, fields: &[(&str, &str)]) -> anyhow::Result<String> {
        self.query_in(REGION, service, action, fields).await
    }

    /// The same in any region.
    pub(crate) async fn query_in(
        &self,
        region: &str,
        service: &str,
        action: &str,
        fields: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let version = match service {
            "ec2" => "2016-11-15",
            "cloudformation" => "2010-05-15",
            _ => "2010-05-08",
        };
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("Action", action), ("Version", version)])
            .extend_pairs(fields)
            .finish();
        let request = self
            .client
            .post(&self.url)
            .header("authorization", Self::authorization(region, service))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "{service}:{action} answered {status}: {text}");
        Ok(text)
    }

    /// Makes a bucket.
    pub(crate) async fn make_bucket(&self, name: &str) -> anyhow::Result<()> {
        let place = format!(
            "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
        );
        let request = self.client.put(format!("{}/{name}", self.url)).body(place);
        request.header("authorization", Self::authorization(REGION, "s3")).send().await?.error_for_status()?;
        Ok(())
    }

    /// An object of S3.
    pub(crate) async fn object(&self, bucket: &str, key: &str) -> anyhow::Result<Vec<u8>> {
        let request = self.client.get(format!("{}/{bucket}/{key}", self.url));
        let response =
            request.header("authorization", Self::authorization(REGION, "s3")).send().await?.error_for_status()?;
        Ok(response.bytes().await?.to_vec())
    }

    /// A call of the JSON protocol; its answer, an error's too.
    pub(crate) async fn json(
        &self,
        region: &str,
        service: &str,
        target: &str,
        fields: &serde_json::Value,
    ) -> anyhow::Result<serde_json::Value> {
        let request = self
            .client
            .post(&self.url)
            .header("authorization", Self::authorization(region, service))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", target)
            .body(fields.to_string());
        let bytes = request.send().await?.bytes().await?;
        // Some calls answer nothing at all.
        if bytes.is_empty() { Ok(serde_json::Value::Null) } else { Ok(serde_json::from_slice(&bytes)?) }
    }

    /// A parameter's value in a region.
    pub(crate) async fn parameter(&self, region: &str, name: &str) -> anyhow::Result<Option<String>> {
        let fields = serde_json::json!({ "Name": name });
        let answer = self.json(region, "ssm", "AmazonSSM.GetParameter", &fields).await?;
        Ok(answer["Parameter"]["Value"].as_str().map(str::to_owned))
    }

    /// Puts an object into S3.
    pub(crate) async fn put_object(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        let request = self.client.put(format!("{}/{bucket}/{key}", self.url)).body(bytes);
        request.header("authorization", Self::authorization(REGION, "s3")).send().await?.error_for_status()?;
        Ok(())
    }
}

async fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// The text of the first element of that name in a query-protocol answer.
pub(crate) fn text_of(answer: &str, element: &str) -> anyhow::Result<String> {
    let document = roxmltree::Document::parse(answer).context("read the emulator's answer")?;
    let node = document.descendants().find(|node| node.tag_name().name() == element);
    node.and_then(|node| node.text()).map(str::to_owned).with_context(|| format!("no {element} in the answer"))
}

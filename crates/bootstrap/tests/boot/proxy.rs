//! A fleet whose only way to GitHub and AWS is a proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_stand_ins::github::{Conclusion, JobSpec, JobState, Step};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Fixture, SOON, fixture};

/// No name server knows these: who does not ask the proxy gets nowhere.
const GITHUB: &str = "http://github.kiln.invalid";
const AWS: &str = "http://aws.kiln.invalid";

/// A proxy that knows them.
struct Proxy {
    address: String,
    connections: Arc<AtomicUsize>,
}

async fn proxy(github: String, aws: tokio::sync::watch::Receiver<String>) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let (github, aws) = (github.clone(), aws.borrow().clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    if client.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
                let target = if line.contains(AWS) { aws } else { github };
                let Ok(mut server) = TcpStream::connect(target).await else { return };
                if server.write_all(&head).await.is_ok() {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    Proxy { address, connections }
}

fn without_scheme(url: &str) -> String {
    url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

#[tokio::test]
async fn a_proxy_is_the_only_way_and_everything_goes_by_it() {
    for (ephemeral, variable) in [(false, "http_proxy"), (true, "HTTP_PROXY")] {
        let fixture = fixture().await;
        let (tell, aws_address) = tokio::sync::watch::channel(String::new());
        let proxy = proxy(fixture.github.address().to_string(), aws_address).await;
        let config = if ephemeral { fixture.ephemeral() } else { fixture.config() };
        let mut config = Fixture::in_group(config, 0);
        config["github"] = json!({ "api_url": format!("{GITHUB}/api/v3"), "url": GITHUB });
        // Without a scheme, as many write it.
        config["environment"] =
            json!({ variable: proxy.address, "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt" });
        let imds = fixture.imds(Some(config.to_string())).await;
        let (mut booted, aws) = fixture.boot_in_group_at(imds, AWS).await;
        tell.send(without_scheme(aws.url())).unwrap();
        booted.online().await;
        assert!(proxy.connections.load(Ordering::Relaxed) >= 2, "GitHub's and the runner's own");
        let job = fixture
            .github
            .queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("echo $http_proxy,$HTTP_PROXY,$no_proxy".into())));
        let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
        let state = fixture.github.wait_job(job, ended, SOON).await.unwrap();
        let JobState::Completed { conclusion: Conclusion::Success, output, .. } = state else { panic!("{state:?}") };
        let address = format!("http://{}", proxy.address);
        assert_eq!(output, format!("{address},{address},169.254.169.254,fd00:ec2::254\n"));
        let docker = std::fs::read_to_string(fixture.path("run/kiln/docker.env")).unwrap();
        assert!(docker.contains(&format!("HTTP_PROXY=\"{address}\"\n")), "{docker}");
        assert!(docker.contains("SSL_CERT_FILE=\"/etc/ssl/certs/ca-certificates.crt\"\n"), "{docker}");
        booted.said("lifecycle action completed").await;
        assert_eq!(aws.state(), "InService");
        booted.stop().await;
        assert_eq!(fixture.runner(), None);
    }
}

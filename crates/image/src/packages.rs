//! Which packages an image has, by the names that each distribution gives them.
//!
//! Each name is in the distribution's list under `packages/`, which says where it was looked up.

use kiln_config::model::{BaseImage, Toolset};

/// What the runner, docker and Kiln's own checks need. docker and git serve jobs; iptables keeps them away from the metadata
/// service; the libraries are what the runner's .NET loads, which its own installdependencies.sh does not install on Amazon
/// Linux. lttng-ust, which .NET can do without, is not among them.
pub fn required(system: BaseImage) -> &'static [&'static str] {
    match system {
        BaseImage::AmazonLinux2 | BaseImage::AmazonLinux2023 => {
            &["docker", "git", "iptables", "tar", "gzip", "libicu", "openssl-libs", "krb5-libs", "zlib"]
        }
        BaseImage::Debian12 => &DEBIAN_12,
        BaseImage::Debian13 => &DEBIAN_13,
        BaseImage::Ubuntu2204 => &UBUNTU_2204,
        BaseImage::Ubuntu2404 => &UBUNTU_2404,
    }
}

const DEBIAN_12: [&str; 11] = deb("libicu72", "libssl3");
const DEBIAN_13: [&str; 11] = deb("libicu76", "libssl3t64");
const UBUNTU_2204: [&str; 11] = deb("libicu70", "libssl3");
const UBUNTU_2404: [&str; 11] = deb("libicu74", "libssl3t64");

/// The libraries have their interface's number in their names.
const fn deb(icu: &'static str, ssl: &'static str) -> [&'static str; 11] {
    ["docker.io", "git", "iptables", "tar", "gzip", icu, ssl, "libkrb5-3", "zlib1g", "ca-certificates", "curl"]
}

/// What a toolset adds.
pub fn tools(system: BaseImage, toolset: Toolset) -> &'static [&'static str] {
    match (toolset, system) {
        (Toolset::Minimal, _) => &[],
        (Toolset::Standard, BaseImage::AmazonLinux2 | BaseImage::AmazonLinux2023) => &[
            "jq",
            "unzip",
            "zip",
            "make",
            "gcc",
            "gcc-c++",
            "python3",
            "python3-pip",
            "rsync",
            "xz",
            "bzip2",
            "wget",
            "patch",
            "file",
        ],
        (Toolset::Standard, _) => &[
            "jq",
            "unzip",
            "zip",
            "make",
            "gcc",
            "g++",
            "python3",
            "python3-pip",
            "python3-venv",
            "rsync",
            "xz-utils",
            "bzip2",
            "wget",
            "patch",
            "file",
        ],
    }
}

/// What people look for that a toolset does not bring: the same name, or the same version, is not in each distribution.
/// A script of one's own installs it.
pub const LEFT_OUT: [(&str, &str); 4] = [
    ("docker compose, docker buildx", "Debian 12 and Amazon Linux have no package of the current ones"),
    ("gh", "Amazon Linux has no package"),
    ("AWS CLI", "Amazon Linux 2023 has it already; Ubuntu 24.04 has no package"),
    ("Node.js, Go, Java, .NET", "the setup actions bring the version that a workflow asks for"),
];

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: [(BaseImage, &str); 6] = [
        (BaseImage::AmazonLinux2023, include_str!("packages/amazon-linux-2023.txt")),
        (BaseImage::AmazonLinux2, include_str!("packages/amazon-linux-2.txt")),
        (BaseImage::Ubuntu2404, include_str!("packages/ubuntu-24.04.txt")),
        (BaseImage::Ubuntu2204, include_str!("packages/ubuntu-22.04.txt")),
        (BaseImage::Debian13, include_str!("packages/debian-13.txt")),
        (BaseImage::Debian12, include_str!("packages/debian-12.txt")),
    ];

    #[test]
    fn every_package_is_in_the_distributions_list() {
        for system in BaseImage::ALL {
            let (_, list) = LISTS.iter().find(|(of, _)| *of == system).unwrap();
            assert!(list.starts_with("# source: ") || list.starts_with("# assumption: "), "{system}");
            let known: Vec<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
            let used = required(system).iter().chain(tools(system, Toolset::Standard));
            let unknown: Vec<&&str> = used.filter(|name| !known.contains(name)).collect();
            assert!(unknown.is_empty(), "{system} has no {unknown:?}");
        }
    }
}

//! The files that `[image.NAME]` tables name, read from the folder of kiln.toml.
//!
//! A link is followed as long as it stays below that folder. What leads out of it is refused: an image is made of what is in
//! the repository, and nothing of the machine that runs the command gets into it unseen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_config::config::{ComponentSource, ContentsError, Image, ImageFile, LocalPath};
use kiln_config::model::ImageName;
use kiln_image::components::Document;
use kiln_image::contents::{Contents, LaidDown, Script};
use kiln_image::packages;
use kiln_operations::{Code, Error};

use crate::cloud;

/// The most of one file, by what it is for. A script that is larger is a program, which `files` lays down.
const MOST_SCRIPT: u64 = 1 << 20;
const MOST_CERTIFICATES: u64 = 256 << 10;
const MOST_FILE: u64 = 64 << 20;
/// The most of an image's files together: they are held in memory, and packed in one archive.
const MOST_TOGETHER: u64 = 256 << 20;

/// Reads what each image is made of.
///
/// # Errors
/// Everything that is wrong with what kiln.toml names, shown at its place there.
pub(crate) fn read<'a>(
    config: &Path,
    images: impl Iterator<Item = &'a Image>,
) -> Result<BTreeMap<ImageName, Contents>, Error> {
    let parent = config.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = parent.canonicalize().map_err(|error| {
        Error::new(Code::ConfigUnreadable, format!("can't find the folder of `{}`", config.display())).caused_by(error)
    })?;
    let mut reader = Reader { folder, together: 0, found: ContentsError::default() };
    let contents = images.map(|image| (image.name.clone(), reader.image(image))).collect();
    let name = config.display().to_string();
    let text = cloud::config_text(config)?;
    reader.found.into_result(&name, &text).map_err(|error| {
        Error::new(Code::ConfigInvalid, error.to_string())
            .caused_by(error)
            .hint("fix the file or its path in kiln.toml; the handbook's page \"Add tools to the image\" has the rules")
    })?;
    Ok(contents)
}

struct Reader {
    folder: PathBuf,
    together: u64,
    found: ContentsError,
}

impl Reader {
    fn image(&mut self, image: &Image) -> Contents {
        self.together = 0;
        let tools = packages::tools(image.system, image.toolset).iter().map(|name| (*name).to_owned());
        let contents = Contents {
            packages: tools.chain(image.packages.iter().cloned()).collect(),
            certificates: image.ca_certificates.iter().flat_map(|path| self.certificates(path)).collect(),
            files: image.files.iter().filter_map(|file| self.file(file)).collect(),
            scripts: image.scripts.iter().filter_map(|path| self.script(path)).collect(),
            tests: image.tests.iter().filter_map(|path| self.script(path)).collect(),
            containers: image.containers.clone(),
            documents: image.components.iter().filter_map(|source| self.document(source)).collect(),
        };
        // Each file fits; what is left to be too long is the documents with a step for each.
        let first = image.scripts.iter().chain(&image.tests).chain(&image.ca_certificates).next();
        if let (Err(problems), Some(at)) = (contents.check(), first) {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let message = format!("image {} has too much in it: {}", image.name, problems.join("; "));
            self.found.push(at, message, "expected fewer scripts, tests, packages or containers");
        }
        contents
    }

    /// A regular file below the folder.
    fn bytes(&mut self, at: &LocalPath, most: u64) -> Option<Vec<u8>> {
        let path = self.folder.join(&at.path);
        let here = "expected a file in the folder of kiln.toml, or below";
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) => {
                self.found.push(at, format!("can't read `{}`: {error}", at.path), here);
                return None;
            }
        };
        if !real.starts_with(&self.folder) {
            let message = format!("`{}` leads to {}, which is elsewhere", at.path, real.display());
            let hint = "copy the file there: an image is made of nothing that is not next to its kiln.toml";
            self.found.push_with_hint(at, message, here, hint);
            return None;
        }
        let length = match std::fs::metadata(&real) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => {
                self.found.push(at, format!("`{}` is no regular file", at.path), here);
                return None;
            }
            Err(error) => {
                self.found.push(at, format!("can't read `{}`: {error}", at.path), here);
                return None;
            }
        };
        self.together += length;
        if length > most || self.together > MOST_TOGETHER {
            let message = format!("`{}` has {length} bytes", at.path);
            let expected = if length > most {
                format!("expected at most {most}")
            } else {
                format!("expected at most {MOST_TOGETHER} in all files of an image")
            };
            self.found.push_with_hint(at, message, &expected, "a script can download what is larger");
            return None;
        }
        match std::fs::read(&real) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.found.push(at, format!("can't read `{}`: {error}", at.path), here);
                None
            }
        }
    }

    fn text(&mut self, at: &LocalPath, most: u64) -> Option<String> {
        let bytes = self.bytes(at, most)?;
        match String::from_utf8(bytes) {
            Ok(text) => Some(text),
            Err(_) => {
                self.found.push(at, format!("`{}` is no text", at.path), "expected UTF-8");
                None
            }
        }
    }

    fn script(&mut self, at: &LocalPath) -> Option<Script> {
        let text = self.text(at, MOST_SCRIPT)?;
        if text.trim().is_empty() {
            self.found.push(at, format!("`{}` is empty", at.path), "expected a script for bash");
            return None;
        }
        if text.contains('\r') {
            let hint = "bash takes the carriage return as part of a word: save the file with Unix line ends";
            self.found.push_with_hint(at, format!("`{}` has Windows line ends", at.path), "expected \\n", hint);
            return None;
        }
        Some(Script { path: at.path.clone(), bytes: text.into_bytes() })
    }

    fn file(&mut self, file: &ImageFile) -> Option<LaidDown> {
        let bytes = self.bytes(&file.source, MOST_FILE)?;
        Some(LaidDown { destination: file.destination.clone(), mode: file.mode, bytes })
    }

    /// Each certificate of a PEM file on its own, as Debian's tool wants them.
    fn certificates(&mut self, at: &LocalPath) -> Vec<String> {
        let Some(text) = self.text(at, MOST_CERTIFICATES) else { return Vec::new() };
        if text.contains("PRIVATE KEY") {
            let hint = "an image is no place for a secret: take the key out, and name the certificate alone";
            self.found.push_with_hint(at, format!("`{}` holds a private key", at.path), "expected certificates", hint);
            return Vec::new();
        }
        let found = certificates(&text);
        if found.is_empty() {
            let expected = "expected -----BEGIN CERTIFICATE----- and what belongs to it";
            self.found.push(at, format!("`{}` holds no certificate in PEM", at.path), expected);
        }
        found
    }

    fn document(&mut self, source: &ComponentSource) -> Option<(String, String)> {
        let ComponentSource::Document(at) = source else { return None };
        let text = self.text(at, MOST_SCRIPT)?;
        let document = match Document::parse(&text) {
            Ok(document) => document,
            Err(problems) => {
                for problem in problems {
                    let message = format!("`{}`: {problem}", at.path);
                    self.found.push(at, message, "expected a component document of Image Builder");
                }
                return None;
            }
        };
        if let Some((name, _)) = document.parameters.iter().find(|(_, parameter)| parameter.default.is_none()) {
            let message = format!("`{}`: parameter {name} has no default", at.path);
            self.found.push(at, message, "expected one: Kiln gives it no value");
            return None;
        }
        let stem = Path::new(&at.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or("document");
        let name: String = stem
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(60)
            .collect();
        Some((name, text))
    }
}

/// The certificates of a PEM text: lines of 64 characters, as OpenSSL writes them, with a comment first.
fn certificates(text: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let bodies = text.split(BEGIN).skip(1).filter_map(|rest| rest.split_once(END)).map(|(body, _)| body);
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    bodies
        .filter_map(|body| {
            let body: String = body.split_whitespace().collect();
            if body.len() < 64 || !body.bytes().all(is_base64) {
                return None;
            }
            let lines: Vec<&str> =
                body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
            Some(format!("# from kiln.toml\n{BEGIN}\n{}\n{END}\n", lines.join("\n")))
        })
        .collect()
}

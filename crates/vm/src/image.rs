//! A bake: the base, the component documents, a disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kiln_config::model::BaseImage;
use kiln_image::components::PhaseName;
use kiln_image::packages;
use kiln_image::payload::Payload;

use super::base;
use super::documents::{Component, Executor, Place, Values, components};
use super::layers::{self, Layers, digest};
use super::sandbox::Sandbox;
use kiln_e2e::story::Timeline;

/// The disk's size as the machine sees it; what `kiln-bootstrap check` wants is below it.
const DISK_GIB: u32 = 24;

/// Where the App's key is on the machine.
pub(super) const KEY: &str = "/etc/kiln/app.pem";

/// Where the payload is in the stand-in S3.
const PAYLOAD: &str = "s3://rehearsal/payload.tar.gz";

/// Where what the image tells of itself would be kept.
const RECORD: &str = "s3://rehearsal/record";

/// What goes into an image beside the documents.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    /// This machine's release of Debian.
    pub(super) debian: &'a str,
    /// The same as kiln.toml names it.
    pub(super) system: BaseImage,
    /// The static binary.
    pub(super) bootstrap: &'a Path,
    /// The runner's version.
    pub(super) runner_version: &'a str,
    /// Where its tarball is.
    pub(super) runner_url: String,
    /// Its digest.
    pub(super) runner_sha256: String,
    /// The App's key.
    pub(super) key: &'a str,
}

/// A baked image.
#[derive(Debug)]
pub(super) struct Image {
    /// The disk.
    pub(super) disk: PathBuf,
    /// The folder with its kernel.
    pub(super) boot: PathBuf,
    components: Vec<Component>,
}

/// Where an image is baked, and what is told of it.
#[derive(Debug)]
pub(super) struct ImageBuild<'a> {
    /// Of former runs.
    pub(super) layers: Layers,
    /// Emptied after the run.
    pub(super) workdir: &'a Path,
    /// Who is told.
    pub(super) say: fn(&str),
}

impl ImageBuild<'_> {
    fn root(&self) -> PathBuf {
        self.workdir.join("root")
    }

    /// Bakes.
    ///
    /// # Errors
    /// The step that fails.
    pub(super) async fn bake(&self, inputs: &Inputs<'_>, timeline: &mut Timeline) -> anyhow::Result<Image> {
        let binary = std::fs::read(inputs.bootstrap).context("read the bootstrap binary")?;
        let payload = Payload::of_bootstrap(&binary);
        let components = components(&values(inputs, &payload))?;
        let objects = BTreeMap::from([(PAYLOAD.to_owned(), payload.bytes)]);
        let executor = Executor { objects: &objects, say: self.say };

        let base_digest = base::base_digest(inputs.debian);
        let base = self.base(inputs.debian, &base_digest, timeline).await?;
        // Documents that need a machine come first, cost the most and know nothing of the payload: made anew only when
        // they change.
        let (first, rest) = components.split_at(components.iter().take_while(|c| c.needs_a_machine()).count());
        let system = self.system(&base, &base_digest, first, &executor, timeline).await?;

        let begin = Instant::now();
        layers::copy(&system, &self.root()).await?;
        let sandbox = Sandbox::new(&self.root());
        let place = Place::Root(&sandbox);
        for component in rest {
            executor.run(component, PhaseName::Build, &place).await?;
        }
        for component in &components {
            executor.run(component, PhaseName::Validate, &place).await?;
        }
        timeline.add(begin.elapsed(), "the other component documents, and every one's validation");

        let begin = Instant::now();
        sandbox.write(KEY, inputs.key.as_bytes()).await?;
        sandbox.bash(&format!("chmod 600 {KEY}"), Duration::from_secs(10)).await?.success()?;
        let disk = self.workdir.join("disk.raw");
        layers::pack(&self.root(), &disk, DISK_GIB).await?;
        timeline.add(begin.elapsed(), "a disk made of it");
        Ok(Image { disk, boot: self.root().join("boot"), components })
    }

    async fn base(&self, debian: &str, digest: &str, timeline: &mut Timeline) -> anyhow::Result<PathBuf> {
        let begin = Instant::now();
        if let Some(base) = self.layers.find("base", digest) {
            timeline.add(begin.elapsed(), format!("the base image is there: Debian {debian}, {digest}"));
            return Ok(base);
        }
        (self.say)(&format!("making the base image of Debian {debian}; it is kept"));
        base::make(debian, &self.root()).await?;
        let base = self.layers.keep("base", digest, &self.root()).await?;
        timeline.add(begin.elapsed(), format!("the base image: Debian {debian}, {digest}"));
        Ok(base)
    }

    async fn system(
        &self,
        base: &Path,
        base_digest: &str,
        documents: &[Component],
        executor: &Executor<'_>,
        timeline: &mut Timeline,
    ) -> anyhow::Result<PathBuf> {
        let begin = Instant::now();
        let parts = documents.iter().flat_map(|component| {
            let values = component.values.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
            [component.text].into_iter().chain(values)
        });
        let digest = digest([base_digest].into_iter().chain(parts));
        let names: Vec<&str> = documents.iter().map(|component| component.document.name.as_str()).collect();
        let names = names.join(", ");
        if let Some(system) = self.layers.find("system", &digest) {
            timeline.add(begin.elapsed(), format!("{names} ran on it before: {digest}"));
            return Ok(system);
        }
        layers::copy(base, &self.root()).await?;
        let sandbox = Sandbox::new(&self.root());
        for component in documents {
            executor.run(component, PhaseName::Build, &Place::Root(&sandbox)).await?;
        }
        let system = self.layers.keep("system", &digest, &self.root()).await?;
        timeline.add(begin.elapsed(), format!("{names}, run on it: {digest}"));
        Ok(system)
    }
}

impl Image {
    /// Runs the documents' test phases on a machine started from it.
    ///
    /// # Errors
    /// The test that fails.
    pub(super) async fn test(&self, machine: &super::machine::Machine, say: fn(&str)) -> anyhow::Result<()> {
        let executor = Executor { objects: &BTreeMap::new(), say };
        for component in &self.components {
            executor.run(component, PhaseName::Test, &Place::Machine(machine)).await?;
        }
        Ok(())
    }
}

/// For whichever of them the documents declare.
fn values(inputs: &Inputs<'_>, payload: &Payload) -> Values {
    [
        ("RunnerVersion", inputs.runner_version.to_owned()),
        ("RunnerUrl", inputs.runner_url.clone()),
        ("RunnerSha256", inputs.runner_sha256.clone()),
        ("PayloadUri", PAYLOAD.to_owned()),
        ("PayloadSha256", payload.sha256.to_string()),
        ("BaseImage", format!("debian-{}", inputs.debian)),
        ("DiskGib", DISK_GIB.to_string()),
        ("Inputs", payload.sha256.to_string()),
        ("RecordUri", RECORD.to_owned()),
        ("SystemPackages", packages::required(inputs.system).join(" ")),
        ("Toolset", "minimal".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

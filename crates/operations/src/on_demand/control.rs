//! The documents in the controller's bucket, from the side that says what is to be.

use kiln_config::boot::{CONTROL_KEY, STATUS_KEY};
use kiln_controller::documents::{Control, FORMAT, Status};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::code::Code;
use crate::error::{Error, Result};
use crate::ports::{CloudErrorKind, ObjectStore};

/// A document and its version; without a version there is none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<T> {
    /// What it says.
    pub document: T,
    /// Which state of it that is.
    pub version: Option<String>,
}

/// A control document that says nothing.
pub(super) fn nothing() -> Control {
    Control { format: FORMAT, fleets: std::collections::BTreeMap::new() }
}

/// The control document; an empty one where there is none, or no bucket.
///
/// # Errors
/// [`Code::ControlUnreadable`] for one that another version of Kiln wrote; what AWS answers.
pub async fn read_control(bucket: &str, cloud: &impl ObjectStore) -> Result<Read<Control>> {
    Ok(match document(bucket, CONTROL_KEY, cloud).await? {
        Some((document, version)) => Read { document, version: Some(version) },
        None => Read { document: nothing(), version: None },
    })
}

/// What the controller says of itself; nothing where it has not said anything yet.
///
/// # Errors
/// As [`read_control`].
pub async fn read_status(bucket: &str, cloud: &impl ObjectStore) -> Result<Status> {
    Ok(document(bucket, STATUS_KEY, cloud).await?.map(|(document, _)| document).unwrap_or_default())
}

async fn document<T: DeserializeOwned>(
    bucket: &str,
    key: &str,
    cloud: &impl ObjectStore,
) -> Result<Option<(T, String)>> {
    let found = match cloud.document(bucket, key).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        // The bucket is made by the controller's stack.
        Err(error) if error.kind == CloudErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let unreadable = |why: String| {
        Error::new(Code::ControlUnreadable, format!("s3://{bucket}/{key} can't be read by this version of Kiln: {why}"))
            .hint("run the command by the version that deployed last, or a newer one")
    };
    let value: Value = serde_json::from_str(&found.text).map_err(|error| unreadable(error.to_string()))?;
    // A newer format may have any shape.
    let format = value["format"].as_u64().unwrap_or_default();
    if format > u64::from(FORMAT) {
        return Err(unreadable(format!("its format is {format}, this version knows {FORMAT}")));
    }
    let document = serde_json::from_value(value).map_err(|error| unreadable(error.to_string()))?;
    Ok(Some((document, found.version)))
}

/// Others that deploy their fleets at the same time write the same document; more of them than this do not.
const MOST_TRIES: usize = 10;

/// Changes the control document, again where another has written it meanwhile. Writes nothing where nothing changes.
pub(super) async fn change(bucket: &str, edit: impl Fn(&mut Control), cloud: &impl ObjectStore) -> Result<()> {
    for _ in 0..MOST_TRIES {
        let Read { document, version } = read_control(bucket, cloud).await?;
        let mut wanted = document.clone();
        edit(&mut wanted);
        if wanted == document && version.is_some() {
            return Ok(());
        }
        let text = serde_json::to_string(&wanted)
            .map_err(|error| Error::new(Code::Internal, "the control document can't be written").caused_by(error))?;
        if cloud.put_document(bucket, CONTROL_KEY, &text, version.as_deref()).await?.is_some() {
            return Ok(());
        }
    }
    Err(Error::new(Code::AwsConflict, format!("s3://{bucket}/{CONTROL_KEY} was changed by others {MOST_TRIES} times"))
        .hint("run the same command again"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use kiln_config::model::Sha256;
    use kiln_controller::documents::Settings;
    use kiln_controller::ids::FleetName;

    use super::*;
    use crate::ports::{CloudError, Document, Result};

    /// One object, which another changes before each of the first so many writes.
    #[derive(Default)]
    struct Bucket {
        text: Mutex<Option<String>>,
        others: Mutex<Vec<String>>,
        is_there: bool,
    }

    impl Bucket {
        fn holding(text: Option<&str>, others: &[String]) -> Self {
            let text = Mutex::new(text.map(str::to_owned));
            Self { text, others: Mutex::new(others.to_vec()), is_there: true }
        }

        fn control(&self) -> Control {
            serde_json::from_str(self.text.lock().unwrap().as_deref().unwrap()).unwrap()
        }
    }

    impl ObjectStore for Bucket {
        async fn empty_bucket(&self, _: &str) -> Result<()> {
            panic!("nothing is deleted here")
        }
        async fn has_blob(&self, _: &str, _: &str) -> Result<bool> {
            Ok(true)
        }
        async fn put_blob(&self, _: &str, _: &str, _: Vec<u8>, _: &Sha256) -> Result<()> {
            Ok(())
        }
        async fn document(&self, _: &str, _: &str) -> Result<Option<Document>> {
            if !self.is_there {
                let (doing, region) = ("read".to_owned(), "eu-central-1".to_owned());
                return Err(CloudError { doing, region, kind: CloudErrorKind::NotFound, source: None });
            }
            let text = self.text.lock().unwrap().clone();
            Ok(text.map(|text| Document { version: text.clone(), text, written: None }))
        }
        async fn put_document(&self, _: &str, _: &str, text: &str, version: Option<&str>) -> Result<Option<String>> {
            let mut now = self.text.lock().unwrap();
            if let Some(other) = self.others.lock().unwrap().pop() {
                *now = Some(other);
            }
            if now.as_deref() != version {
                return Ok(None);
            }
            *now = Some(text.to_owned());
            Ok(Some(text.to_owned()))
        }
    }

    fn settings(max: u32) -> Settings {
        serde_json::from_value(serde_json::json!({
            "set": { "name": "kiln-linux", "group": 1, "labels": ["linux"] }, "min_idle": 0, "max": max, "version": 1,
            "launch": { "template": "lt-1", "types": [], "subnets": [], "role_id": "AROA" },
        }))
        .unwrap()
    }

    fn with(fleets: &[(&str, u32)]) -> String {
        let fleets = fleets.iter().map(|(name, max)| (FleetName::new(*name), settings(*max))).collect();
        serde_json::to_string(&Control { format: FORMAT, fleets }).unwrap()
    }

    async fn set(bucket: &Bucket, max: u32) -> crate::error::Result<()> {
        let edit = |control: &mut Control| drop(control.fleets.insert(FleetName::new("linux"), settings(max)));
        change("bucket", edit, bucket).await
    }

    /// Two pipelines deploy two fleets at the same time: neither undoes what the other wrote.
    #[tokio::test]
    async fn what_another_wrote_meanwhile_stays() {
        let other = with(&[("linux", 1), ("arm", 7)]);
        let bucket = Bucket::holding(Some(&with(&[("linux", 1)])), &[other]);
        set(&bucket, 40).await.unwrap();
        assert_eq!(bucket.control(), serde_json::from_str(&with(&[("linux", 40), ("arm", 7)])).unwrap());
    }

    #[tokio::test]
    async fn the_first_write_makes_the_document() {
        let bucket = Bucket::holding(None, &[]);
        set(&bucket, 40).await.unwrap();
        assert_eq!(bucket.control().fleets.len(), 1);
        // The very same again is no write: this one would be refused.
        bucket.others.lock().unwrap().push("{}".to_owned());
        set(&bucket, 40).await.unwrap();
        assert_eq!(bucket.others.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_document_that_never_rests_is_given_up() {
        let others: Vec<String> = (0..20).map(|max| with(&[("arm", max)])).collect();
        let error = set(&Bucket::holding(None, &others), 40).await.unwrap_err();
        assert_eq!(error.code, Code::AwsConflict);
    }

    /// An old tool does not write over what it can't read.
    #[tokio::test]
    async fn what_a_newer_version_wrote_is_refused() {
        let bucket = Bucket::holding(Some(r#"{"format":2,"fleets":{"linux":"another shape"}}"#), &[]);
        let error = set(&bucket, 40).await.unwrap_err();
        assert_eq!(error.code, Code::ControlUnreadable);
        assert!(error.message.contains("its format is 2, this version knows 1"), "{error}");
    }

    #[tokio::test]
    async fn where_there_is_no_bucket_nothing_is_controlled() {
        let read = read_control("bucket", &Bucket::default()).await.unwrap();
        assert_eq!((read.version, read.document), (None, nothing()));
        assert_eq!(read_status("bucket", &Bucket::default()).await.unwrap(), Status::default());
    }
}

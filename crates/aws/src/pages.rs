//! Lists that AWS gives in pages: whole, or an error. What is cut off must not pass for all there is: `prune` would remove an
//! image that a later page names, `destroy` a network that a later page's fleet uses.

use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_async::future::pagination_stream::PaginationStream;
use kiln_operations::ports::{CloudError, CloudErrorKind, Result};

use crate::Aws;
use crate::error::Said;

/// A hundred pages are a hundred thousand images, snapshots or instances, and ten thousand stacks: beyond AWS's quotas for
/// all that is listed here.
pub(crate) const MOST_PAGES: usize = 100;

/// Every page of a call's paginator.
///
/// The SDK's paginators end without an error where a service gives the same token twice. Here such a list goes on to the
/// limit, and is an error there.
macro_rules! pages {
    ($aws:expr, $doing:expr, $call:expr) => {
        pages!($aws, $doing, $call, $crate::pages::MOST_PAGES)
    };
    ($aws:expr, $doing:expr, $call:expr, $most:expr) => {
        $aws.whole($doing, $call.into_paginator().stop_on_duplicate_token(false).send(), $most)
    };
}
pub(crate) use pages;

impl Aws {
    /// Every page, or an error where there are more than so many.
    pub(crate) async fn whole<P, E, R>(
        &self,
        doing: impl Into<String> + Send,
        mut stream: PaginationStream<std::result::Result<P, SdkError<E, R>>>,
        most: usize,
    ) -> Result<Vec<P>>
    where
        P: Send,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let mut pages = Vec::new();
        while let Some(page) = stream.next().await {
            let page = match page {
                Ok(page) => page,
                Err(error) => return Err(self.failed(doing, error)),
            };
            if pages.len() == most {
                return Err(CloudError {
                    doing: doing.into(),
                    region: self.region.clone(),
                    kind: CloudErrorKind::TooLong,
                    source: Some(Box::new(Said(format!("there are more than {most} pages of it")))),
                });
            }
            pages.push(page);
        }
        Ok(pages)
    }
}

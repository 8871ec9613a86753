//! `vman image …`

use crate::cli::{
    Session,
    args::{ImageCommand, ImageKind},
    ask::Ask,
    client::Body,
    error::CliError,
    view,
};
use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{body::Frame, header};
use indicatif::{ProgressBar, ProgressStyle};
use std::{io, path::Path};
use tokio_util::io::ReaderStream;

/// Pieces in which a file is sent: large enough to keep a local socket busy.
const PIECE: usize = 256 * 1024;

pub(in crate::cli) async fn run(
    command: ImageCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        ImageCommand::List => session.list(&view::IMAGE, Ask::get(&["images"])).await,
        ImageCommand::Info { name } => {
            session
                .one(&view::IMAGE, Ask::get(&["images", &name]))
                .await
        }
        ImageCommand::Delete { name } => {
            let ask = Ask::delete(&["images", &name]);
            session.delete("image", &name, ask).await
        }
        ImageCommand::Put {
            name,
            file,
            kind,
            sha256,
        } => put(&name, &file, kind, sha256, session).await,
    }
}

async fn put(
    name: &str,
    path: &Path,
    kind: ImageKind,
    sha256: Option<String>,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    let unreadable = |cause: io::Error| CliError::File {
        path: path.to_owned(),
        cause,
    };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let meta = file.metadata().await.map_err(unreadable)?;
    if !meta.is_file() {
        return Err(unreadable(io::Error::other("it is not a regular file")));
    }
    let kind = match kind {
        ImageKind::Disk => "disk",
        ImageKind::Kernel => "kernel",
        ImageKind::Initrd => "initrd",
    };
    let mut ask = Ask::put(&["images", name])
        .query("kind", kind)
        .header(
            header::CONTENT_TYPE.as_str(),
            "application/octet-stream".to_owned(),
        )
        .header(header::CONTENT_LENGTH.as_str(), meta.len().to_string());
    if let Some(sha256) = sha256 {
        ask = ask.header("x-checksum-sha256", sha256);
    }
    let bar = progress_bar(meta.len(), session.terminal.err_is_terminal);
    let outcome = session.client.upload(&ask, body(file, bar.clone())).await;
    bar.finish_and_clear();
    view::IMAGE.one(&outcome?.value, session.format, session.terminal)
}

fn body(file: tokio::fs::File, bar: ProgressBar) -> Body {
    let pieces = ReaderStream::with_capacity(file, PIECE).map_ok(move |piece| {
        bar.inc(piece.len() as u64);
        Frame::data(piece)
    });
    StreamBody::new(pieces).boxed()
}

fn progress_bar(length: u64, visible: bool) -> ProgressBar {
    if !visible {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    let template = "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

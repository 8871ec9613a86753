//! Images: streamed in, verified and inspected before they can be used.

use super::not_found;
use crate::http::{
    dto::image::{Clones, ImageBody},
    error::{ApiError, Code, ProblemBody},
    extract::{Caller, Id, Query, content_length, discard},
    paging::{List, if_match, json, tagged, with_header},
    refusal::too_large,
    state::HttpState,
};
use axum::{
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::BodyExt;
use std::{cell::LazyCell, fmt::Write as _, time::Duration};
use utoipa::ToSchema;
use vman_actors::{disks::ImageError, disks::StartedUpload};
use vman_model::{ImageKind, ImageName, ImageRecord};

const KINDS: [(&str, ImageKind); 3] = [
    ("disk", ImageKind::Disk),
    ("kernel", ImageKind::Kernel),
    ("initrd", ImageKind::Initrd),
];

/// The bytes of a file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "it is the document of a body that is streamed")]
pub(crate) struct ImageFile(Vec<u8>);

/// Upload an image
///
/// The body is the file. It is streamed to the storage, its checksum verified if
/// one was sent, and inspected; only then it can be used.
#[utoipa::path(
    put, path = "/images/{name}", tag = "images",
    params(
        ("name" = String, Path, description = "Its name"),
        ("kind" = Option<String>, Query, description = "`disk` (the default), `kernel` or `initrd`"),
        ("X-Checksum-SHA256" = Option<String>, Header, description = "SHA-256 of the file in hex"),
        ("Content-Digest" = Option<String>, Header, description = "RFC 9530, `sha-256=:base64:`; `Repr-Digest` too"),
    ),
    request_body(content = inline(ImageFile), content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "It can be used", body = ImageBody<'static>),
        (status = "default", description = "Refused; nothing was kept", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn put_image(
    State(state): State<HttpState>,
    caller: Caller,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Response, ApiError> {
    let begun = begin(&state, path, &uri, &headers).await;
    let taken = match begun {
        Ok((mut upload, checksum)) => take(&state, &mut upload, &mut body)
            .await
            .map(|()| (upload, checksum)),
        Err(error) => Err(error),
    };
    let (upload, checksum) = match taken {
        Ok(taken) => taken,
        Err(error) => {
            discard(&headers, body).await;
            return Err(error);
        }
    };
    // All bytes are here: a client that goes away now interrupts nothing.
    let now = state.handles().clock.now();
    let finishing = tokio::spawn(upload.finish(checksum, caller.origin(), now));
    let record = finishing.await.map_err(|_| {
        ApiError::new(
            Code::Internal,
            "the image could not be finished; see the daemon's log",
        )
    })??;
    Ok(created(&state, &record))
}

async fn begin(
    state: &HttpState,
    path: Result<Path<String>, PathRejection>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(StartedUpload, Option<String>), ApiError> {
    let bad_name = |why: String| ApiError::field("name", why);
    let Path(name) = path.map_err(|_| bad_name("cannot be read".to_owned()))?;
    let name = ImageName::parse(&name).map_err(|error| bad_name(error.to_string()))?;
    let mut query = Query::of(uri)?;
    let kind = query.word("kind", &KINDS).unwrap_or(ImageKind::Disk);
    query.finish()?;
    let checksum = promised_checksum(headers)?;
    let limit = state.settings.limits.max_image;
    if content_length(headers).is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let upload = state.handles().disks.begin_upload(name, kind).await?;
    Ok((upload, checksum))
}

/// Streams the body into the upload.
async fn take(
    state: &HttpState,
    upload: &mut StartedUpload,
    body: &mut Body,
) -> Result<(), ApiError> {
    let limits = &state.settings.limits;
    let idle = Duration::from_secs(limits.upload_idle_s);
    let mut size = 0_u64;
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(idle, body.frame()) => frame.map_err(|_| stalled(limits.upload_idle_s))?,
            () = state.settings.shutdown.cancelled() => {
                let detail = "the daemon is stopping, nothing was kept: upload it again";
                return Err(ApiError::new(Code::ShuttingDown, detail));
            }
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| truncated())?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        size += bytes.len() as u64;
        if size > limits.max_image {
            return Err(too_large(limits.max_image));
        }
        upload.write(bytes).await?;
    }
    if size == 0 {
        return Err(ApiError::new(
            Code::ImageRefused,
            "the body is empty: send the file as the body",
        ));
    }
    Ok(())
}

fn truncated() -> ApiError {
    let detail = "the upload ended before it was complete; nothing was kept: upload it again";
    ApiError::new(Code::TruncatedBody, detail)
}

fn stalled(seconds: u64) -> ApiError {
    let detail = format!("nothing came for {seconds} s; nothing was kept: upload it again");
    ApiError::new(Code::UploadStalled, detail)
}

fn created(state: &HttpState, record: &ImageRecord) -> Response {
    let location = format!("/images/{}", record.name);
    let inventory = state.inventory();
    let response = match inventory.images.get(&record.name) {
        Some(row) => tagged(
            json(
                StatusCode::CREATED,
                &ImageBody::of(row, &Clones::of(&inventory)),
            ),
            row.revision,
        ),
        // It was deleted at once; it was made all the same.
        None => StatusCode::CREATED.into_response(),
    };
    with_header(response, header::LOCATION, &location)
}

/// The SHA-256 that the client promises, in lower-case hex.
fn promised_checksum(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let malformed = |name: &str, must: &str| {
        ApiError::new(Code::MalformedHeader, format!("{name} must be {must}"))
    };
    let mut promised: Vec<String> = Vec::new();
    for value in headers.get_all("x-checksum-sha256") {
        let hex = value.to_str().unwrap_or_default().to_ascii_lowercase();
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed("X-Checksum-SHA256", "64 hexadecimal digits"));
        }
        promised.push(hex);
    }
    for name in ["content-digest", "repr-digest"] {
        for value in headers.get_all(name) {
            let text = value.to_str().unwrap_or_default();
            // Other algorithms may stand beside it (RFC 9530, section 2).
            let ours = text
                .split(',')
                .filter_map(|item| item.trim().strip_prefix("sha-256="));
            for item in ours {
                let hex = hex_of(item);
                promised
                    .push(hex.ok_or_else(|| malformed(name, "sha-256=:<base64 of 32 bytes>:"))?);
            }
        }
    }
    promised.dedup();
    if promised.len() > 1 {
        let detail = "the checksum headers promise different things";
        return Err(ApiError::new(Code::MalformedHeader, detail));
    }
    Ok(promised.pop())
}

fn hex_of(item: &str) -> Option<String> {
    let base64 = item.strip_prefix(':')?.split(':').next()?;
    let bytes = STANDARD
        .decode(base64)
        .ok()
        .filter(|bytes| bytes.len() == 32)?;
    let mut hex = String::with_capacity(64);
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    Some(hex)
}

/// List the images
#[utoipa::path(
    get, path = "/images", tag = "images",
    params(
        ("kind" = Option<String>, Query, description = "Only those of this kind"),
        ("limit" = Option<u64>, Query, description = "At most this many, 1 to 1000"),
        ("cursor" = Option<String>, Query, description = "From the Link header of the page before"),
    ),
    responses(
        (status = 200, description = "By name", body = Vec<ImageBody<'static>>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_images(
    State(state): State<HttpState>,
    mut list: List<ImageName>,
) -> Result<Response, ApiError> {
    let kind = list.query.word("kind", &KINDS);
    let page = list.finish()?;
    let inventory = state.inventory();
    let clones = LazyCell::new(|| Clones::of(&inventory));
    let rows = inventory
        .images
        .range::<_, ImageName>(page.upwards())
        .filter(|(_, row)| kind.is_none_or(|kind| row.value.kind == kind));
    Ok(page.answer(&inventory, rows, |row| ImageBody::of(row, &clones)))
}

/// One image
#[utoipa::path(
    get, path = "/images/{name}", tag = "images",
    params(("name" = String, Path, description = "The image")),
    responses(
        (status = 200, description = "The image", body = ImageBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_image(
    State(state): State<HttpState>,
    Id(name): Id<ImageName>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let inventory = state.inventory();
    let row = inventory
        .images
        .get(&name)
        .ok_or_else(|| not_found("image", &name))?;
    Ok(tagged(
        json(StatusCode::OK, &ImageBody::of(row, &Clones::of(&inventory))),
        row.revision,
    ))
}

/// Delete an image that nothing uses
#[utoipa::path(
    delete, path = "/images/{name}", tag = "images",
    params(
        ("name" = String, Path, description = "The image"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this revision"),
    ),
    responses(
        (status = 204, description = "Deleted"),
        (status = "default", description = "Refused; 409 while something uses it", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_image(
    State(state): State<HttpState>,
    caller: Caller,
    Id(name): Id<ImageName>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    if let Some(row) = state.inventory().images.get(&name) {
        if_match(&headers, row.revision, "image")?;
    }
    let (disks, now) = (state.handles().disks.clone(), state.handles().clock.now());
    // The record goes first, then the file: a client that goes away in between
    // must not keep the file.
    let deleting =
        tokio::spawn(async move { disks.delete_image(name, caller.origin(), now).await });
    let deleted: Result<(), ImageError> = deleting
        .await
        .map_err(|_| ApiError::new(Code::Internal, "the deletion failed; see the daemon's log"))?;
    deleted?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

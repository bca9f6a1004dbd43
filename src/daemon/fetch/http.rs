//! GET over HTTP/1.1 for a few large files: redirects by hand, a token that stays with its server, limits on waiting.

use std::path::PathBuf;
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::FetchError;
use crate::transport::mqtt::Tls;

/// Longest silence of a server that is borne.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(15);

/// Most redirects from one address.
const MAX_REDIRECTS: usize = 5;

/// SHA-256 of a large file at Hugging Face's, beside the redirect to where it is kept.
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");

/// The commit that a branch's name led to.
const COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");

/// The client: whom it trusts and what it shows to the first server.
pub(super) struct Http {
    tls: Option<Tls>,
    /// The server that gets the token.
    home: Uri,
    token: Option<String>,
}

/// The head of an answer, and the body that is still to come.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Incoming,
    linked_etag: Option<String>,
    /// The commit that the server says the files are of.
    pub(super) commit: Option<String>,
}

impl Http {
    /// A client of the server at `home`, which alone gets `token`. `ca` is a file of authorities; the system's when absent.
    pub(super) fn new(home: Uri, ca: Option<&PathBuf>, token: Option<String>) -> Result<Http, FetchError> {
        let secure = home.scheme_str() == Some("https");
        let refused = |reason: &str| FetchError::Server { url: home.to_string(), reason: reason.to_owned() };
        let host = home.host().ok_or_else(|| refused("expected http://HOST or https://HOST"))?;
        if !secure && home.scheme_str() != Some("http") {
            return Err(refused("expected http:// or https://"));
        }
        if token.is_some() && !secure && host != "127.0.0.1" && host != "localhost" {
            return Err(refused("a token is not sent without TLS; expected https://"));
        }
        // Redirects may lead from http to https; authorities that cannot be read are an error where they are needed.
        let tls = match Tls::load(ca.map(PathBuf::as_path), None) {
            Ok(tls) => Some(tls),
            Err(error) if secure || ca.is_some() => return Err(FetchError::Failed(error.to_string())),
            Err(_) => None,
        };
        Ok(Http { tls, home, token })
    }

    /// Asks for `url`, or for `range` of it if that is still what has the entity tag `if_range`; follows redirects.
    pub(super) async fn get(
        &self,
        url: &str,
        range: Option<std::ops::Range<u64>>,
        if_range: Option<&str>,
    ) -> Result<Answer, FetchError> {
        let mut uri: Uri =
            url.parse().map_err(|error| FetchError::Server { url: url.to_owned(), reason: format!("{error}") })?;
        let (mut linked_etag, mut commit) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let home = same_server(&uri, &self.home);
            let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
                .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
                .header(header::USER_AGENT, concat!("emberd/", env!("CARGO_PKG_VERSION")))
                .header(header::ACCEPT_ENCODING, "identity")
                .header(header::CONNECTION, "close");
            if let Some(range) = &range {
                request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
                if let Some(tag) = if_range {
                    request = request.header(header::IF_RANGE, tag);
                }
            }
            if let (true, Some(token)) = (home, &self.token) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(axum::body::Body::empty());
            let request = request.map_err(|error| FetchError::Failed(format!("{}: {error}", brief(&uri))))?;
            let response = self.send(&uri, request).await?;
            let (head, body) = response.into_parts();
            if home {
                linked_etag = linked_etag.or_else(|| text(&head.headers, &LINKED_ETAG).filter(|tag| strong(tag)));
                commit = commit.or_else(|| text(&head.headers, &COMMIT).filter(|commit| is_hex(commit, 40)));
            }
            if !head.status.is_redirection() {
                return Ok(Answer { status: head.status, headers: head.headers, body, linked_etag, commit });
            }
            let to = text(&head.headers, &header::LOCATION).and_then(|to| resolve(&uri, &to));
            let refused = |reason: &str| FetchError::Server { url: brief(&uri), reason: reason.to_owned() };
            let to = to.ok_or_else(|| refused("redirects to nowhere"))?;
            if uri.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
                return Err(refused("redirects from https to a connection without TLS"));
            }
            uri = to;
        }
        Err(FetchError::Server { url: url.to_owned(), reason: format!("more than {MAX_REDIRECTS} redirects") })
    }

    async fn send(
        &self,
        uri: &Uri,
        request: Request<axum::body::Body>,
    ) -> Result<hyper::Response<Incoming>, FetchError> {
        let lost = |reason: String| FetchError::Lost { url: brief(uri), reason };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if secure {
            let tls = self.tls.as_ref().ok_or_else(|| {
                FetchError::Failed("no certificate authorities: install ca-certificates, or name --ca-file".to_owned())
            })?;
            return exchange(tls.connect(host, port).await.map_err(lost)?, request).await.map_err(lost);
        }
        let connecting = timeout(CONNECT, TcpStream::connect((host, port))).await;
        let late = |_| lost(format!("no connection within {} s", CONNECT.as_secs()));
        let stream = connecting.map_err(late)?.map_err(|error| lost(error.to_string()))?;
        exchange(stream, request).await.map_err(lost)
    }
}

impl Answer {
    /// Names this very content: the checksum that the first server knows, or else the entity tag, if that is a strong one.
    pub(super) fn tag(&self) -> Option<String> {
        self.linked_etag.clone().or_else(|| self.etag())
    }

    /// The strong entity tag of the server that sends the content.
    pub(super) fn etag(&self) -> Option<String> {
        text(&self.headers, &header::ETAG).filter(|tag| strong(tag))
    }

    /// The SHA-256 of the whole content, where the tag is one.
    pub(super) fn sha256(&self) -> Option<String> {
        let tag = self.tag()?;
        let sum = tag.trim_matches('"').to_ascii_lowercase();
        is_hex(&sum, 64).then_some(sum)
    }

    /// The length of the body, if it is said.
    pub(super) fn length(&self) -> Option<u64> {
        text(&self.headers, &header::CONTENT_LENGTH)?.parse().ok()
    }

    /// Where in what the body lies: first byte, byte behind the last one, length of the whole.
    pub(super) fn range(&self) -> Option<(u64, u64, u64)> {
        let range = text(&self.headers, &header::CONTENT_RANGE)?;
        let (range, len) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last, len): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, len.parse().ok()?);
        (first <= last && last < len).then_some((first, last + 1, len))
    }

    /// The next piece of the body; `None` at its end.
    pub(super) async fn next(&mut self, url: &str) -> Result<Option<Bytes>, FetchError> {
        let lost = |reason: String| FetchError::Lost { url: url.to_owned(), reason };
        loop {
            let frame = std::future::poll_fn(|context| std::pin::Pin::new(&mut self.body).poll_frame(context));
            let late = |_| lost(format!("nothing came for {} s", PATIENCE.as_secs()));
            match timeout(PATIENCE, frame).await.map_err(late)? {
                None => return Ok(None),
                Some(Err(error)) => return Err(lost(told(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => continue,
                },
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<axum::body::Body>,
) -> Result<hyper::Response<Incoming>, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    tokio::spawn(connection);
    let answer = timeout(PATIENCE, sender.send_request(request)).await;
    answer.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?.map_err(|error| told(&error))
}

/// An error with what caused it; hyper's own words leave that out.
fn told(error: &hyper::Error) -> String {
    std::error::Error::source(error).map_or(error.to_string(), |source| format!("{error}: {source}"))
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn strong(tag: &str) -> bool {
    tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"')
}

/// Whether `text` is `digits` hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn same_server(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// An address without its query, which may be a signature that lets others in.
fn brief(uri: &Uri) -> String {
    uri.to_string().split('?').next().unwrap_or_default().to_owned()
}

/// Where `location` leads from `from`.
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let absolute = match location {
        _ if location.starts_with("http://") || location.starts_with("https://") => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => {
            let (dir, _) = from.path().rsplit_once('/')?;
            format!("{scheme}://{authority}{dir}/{location}")
        }
    };
    let uri: Uri = absolute.split('#').next()?.parse().ok()?;
    uri.host().is_some().then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let from: Uri = "https://a.example/x/y?z=1".parse().unwrap();
        for (location, to) in [
            ("https://b.example/c?d", "https://b.example/c?d"),
            ("//b.example/c", "https://b.example/c"),
            ("/c#part", "https://a.example/c"),
            ("c", "https://a.example/x/c"),
        ] {
            assert_eq!(resolve(&from, location).unwrap(), to, "{location}");
        }
        assert!(resolve(&from, "https://").is_none());
    }

    #[test]
    fn a_server_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_server(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://A.example/x", "https://a.example:443/y"));
        for other in ["http://a.example", "https://a.example:444", "https://b.a.example", "https://a.example.b"] {
            assert!(!same("https://a.example", other), "{other}");
        }
        assert_eq!(brief(&"https://a.example/x?Signature=secret".parse().unwrap()), "https://a.example/x");
    }
}

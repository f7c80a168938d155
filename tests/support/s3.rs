//! A stand-in for S3 stores, and GCS, that are not installed here: a bucket in memory that behaves as one of them was seen to. It
//! takes any signature.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

/// What it does otherwise than S3.
#[derive(Debug, Clone, Copy, Default)]
pub struct Behaviour {
    /// It looks whether the object is there when a PUT's head has come, and writes it when the body has (s3s-fs 0.14).
    pub looks_first: bool,
    /// A PUT needs a checksum: the bucket has Object Lock.
    pub locked: bool,
    /// The checksum that S3's own SDKs send is refused.
    pub refuses_checksums: bool,
    /// The first answer to each PUT of an object of the chain is lost: it is stored, and the connection ends.
    pub loses_answers: bool,
    /// PUTs of objects whose name begins like this are answered by 503.
    pub refuses: Option<&'static str>,
    /// No right to list, so a key that is missing is answered by 403, as the right to be told so is that one (AWS).
    pub lists_not: bool,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    /// The heads of all requests.
    seen: Vec<String>,
    written: u64,
    behaviour: Behaviour,
}

pub struct S3 {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl S3 {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(Mutex::new(State { behaviour, ..State::default() }));
        let shared = state.clone();
        // Ends with the process: a connection that is dropped ends its thread, and nobody else is told the port.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = shared.clone();
                thread::spawn(move || while serve(&client, &state).is_some() {});
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// From the next request on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Another writer's object: whatever stands there is gone.
    pub fn overwrite(&self, key: &str, change: impl FnOnce(&[u8]) -> Vec<u8>) {
        let mut state = self.state();
        state.written += 1;
        let written = state.written;
        let (bytes, etag) = state.objects.get_mut(key).expect("it is there");
        (*bytes, *etag) = (change(bytes), written);
    }

    /// The heads of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.state().seen.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request and its answer; `None` when the connection is over.
fn serve(client: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut from = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let behaviour = {
        let mut state = lock(state);
        state.seen.push(head.clone());
        state.behaviour
    };
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut request_line = head.split(' ');
    let (method, target) = (request_line.next()?, request_line.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // `/bucket/key`
    let key = percent_decoded(path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key));
    let creates = header("if-none-match").is_some() || header("x-goog-if-generation-match").is_some();
    let stood = lock(state).objects.contains_key(&key);
    let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    from.read_exact(&mut body).ok()?;
    let has_checksum = head.to_lowercase().contains("\nx-amz-checksum-");
    let mut content_range = String::new();
    let (status, tag, answer) = match method {
        "PUT"
            if behaviour
                .refuses
                .is_some_and(|name| key.rsplit('/').next().is_some_and(|key| key.starts_with(name))) =>
        {
            (503, None, error("SlowDown", "Please reduce your request rate."))
        }
        "PUT" if behaviour.locked && !has_checksum => (
            400,
            None,
            error(
                "InvalidRequest",
                "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters",
            ),
        ),
        "PUT" if behaviour.refuses_checksums && has_checksum => (
            400,
            None,
            error("InvalidArgument", "Unsupported header 'x-amz-checksum-sha256' received for this API call"),
        ),
        "PUT" => {
            let mut state = lock(state);
            let stands = if behaviour.looks_first { stood } else { state.objects.contains_key(&key) };
            if creates && stands {
                (412, None, error("PreconditionFailed", "At least one of the preconditions did not hold"))
            } else {
                state.written += 1;
                let tag = state.written;
                let is_lost = behaviour.loses_answers && key.contains("/topic=") && !stands;
                state.objects.insert(key, (body, tag));
                if is_lost {
                    return None;
                }
                (200, Some(tag), Vec::new())
            }
        }
        "GET" if query.contains("list-type=2") => match behaviour.lists_not {
            true => (403, None, error("AccessDenied", "Access Denied")),
            false => (200, None, listing(&lock(state), query)),
        },
        "GET" | "HEAD" => match lock(state).objects.get(&key) {
            Some((bytes, tag)) => match header("range").as_deref().and_then(range) {
                Some((from, to)) => {
                    let to = to.min(bytes.len());
                    content_range = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, bytes.len());
                    (206, Some(*tag), bytes[from..to].to_vec())
                }
                None => (200, Some(*tag), bytes.clone()),
            },
            None if behaviour.lists_not => (403, None, error("AccessDenied", "Access Denied")),
            None => (404, None, error("NoSuchKey", "The specified key does not exist.")),
        },
        _ => (405, None, error("MethodNotAllowed", "It is not needed here")),
    };
    let tag = tag.map_or(String::new(), |tag| format!("ETag: \"{tag}\"\r\n"));
    let length = answer.len();
    let head = format!(
        "HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nLast-Modified: Mon, 23 Nov 2026 08:00:00 GMT\r\n{content_range}{tag}\r\n"
    );
    let mut to = client;
    to.write_all(head.as_bytes()).ok()?;
    if method != "HEAD" {
        to.write_all(&answer).ok()?;
    }
    Some(())
}

/// `bytes=FROM-TO`, `TO` included; here it is not.
fn range(text: &str) -> Option<(usize, usize)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some((from.parse().ok()?, to.parse::<usize>().ok()? + 1))
}

fn error(code: &str, message: &str) -> Vec<u8> {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>").into_bytes()
}

fn listing(state: &State, query: &str) -> Vec<u8> {
    let asked =
        |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)).map(percent_decoded).unwrap_or_default();
    let (prefix, after) = (asked("prefix="), asked("start-after="));
    let entries =
        state.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && (after.is_empty() || **key > after));
    let entries: String = entries
        .map(|(key, (bytes, tag))| {
            let size = bytes.len();
            format!("<Contents><Key>{key}</Key><LastModified>2026-11-23T08:00:00.000Z</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>")
        })
        .collect();
    format!("<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>")
        .into_bytes()
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let code: Option<u8> = (byte == b'%').then(|| {
            let digits = [rest.next().unwrap_or_default(), rest.next().unwrap_or_default()];
            u8::from_str_radix(std::str::from_utf8(&digits).unwrap_or_default(), 16).unwrap_or_default()
        });
        bytes.push(code.unwrap_or(byte));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

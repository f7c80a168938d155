//! Every key, declared once: what `config.toml` says of it, its type, its default, what values it takes by itself (rules
//! between keys are in `validate`), and whether a reload changes it. [`SECTIONS`] has them all; `config.toml` is written from
//! them.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    AdminKeys, AggregateConfig, ByteSize, EventTypes, HttpKeys, HttpSource, RateLimit, TrustedProxies, UnknownType,
    default_aggregates, duration,
    keys::{Change, Key, Kind, LONGEST_RESTART, Section},
};
use crate::names::words;
use Change::{Live, LiveOnceOn, LiveWithoutKafka, Restart};
use Kind::{Aggregates, Flag, Integer, List, OneOf, Operators, Options, Percent, Senders, Size, Sources, Text, Types};

/// Sections: the name with a dot, the keys (type and how it is written, default, kind, what a reload does), and the
/// sections below.
macro_rules! sections {
    ($(
        $prefix:literal
        $(#[doc = $about:literal])*
        $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $key:ident: $type:ty $(as $with:literal)? = $default:expr, $kind:expr, $change:expr;
            )*
            $(+ $below:ident: $section:ident;)*
        }
    )*) => {
        $(
            $(#[doc = $about])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $name {
                $(
                    $(#[doc = $doc])*
                    $(#[serde(with = $with)])?
                    pub $key: $type,
                )*
                $(pub $below: $section,)*
            }

            impl Default for $name {
                fn default() -> Self {
                    Self { $($key: $default,)* $($below: $section::default(),)* }
                }
            }

            impl $name {
                const SECTION: Section = Section {
                    prefix: $prefix,
                    #[cfg(test)]
                    about: &[$($about),*],
                    keys: &[$(Key {
                        name: concat!($prefix, stringify!($key)),
                        kind: $kind,
                        change: $change,
                        #[cfg(test)]
                        about: &[$($doc),*],
                    }),*],
                };
            }
        )*

        pub(super) const SECTIONS: &[Section] = &[$($name::SECTION),*];
    };
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const PIB: u64 = 1024 * 1024 * GIB;

const MS: Duration = Duration::from_millis(1);
const ATTEMPT: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Of 365 days.
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 3600);

/// From any time on to the last one of the calendar: no bound but that.
const LONGEST_FUTURE: Duration = Duration::from_secs(10_000 * 31_557_600);
/// MongoDB's limit of `expireAfterSeconds` is 2³¹ − 1 seconds; ten years stay far below.
const LONGEST_TTL: Duration = TEN_YEARS;
/// A record is one message of Kafka (`message.max.bytes` ends at 10⁹) and one value of SQLite.
const LARGEST_EVENT: u64 = 256 * MIB;
/// Kafka's field is an int16.
const MOST_REPLICAS: i64 = i16::MAX as i64;

sections! {
    ""
    Config {
        /// What this process runs: "all", or some of the groups "ingest", "archive", "aggregate", "worker" (archive and
        /// aggregate), or of the actors "ingestor", "producer", "consumer", "spooler", "uploader", "aggregator", "watchdog".
        /// The embedded queue needs all in one process. Command line: --roles ingest
        roles: Vec<String> = vec!["all".to_owned()], List, Restart;
        /// What is counted and measured, by windows of the events' own time. Any [[aggregate]] replaces this one, whose fields follow
        /// event.client_field and event.type_field. window: "1s" to "366d"; of "1d" also time_zone = "Europe/Berlin". group_by:
        /// names of fields, or JSON pointers ("/geo/country"). filter = { type = "login_failed", country = ["DE", "AT"],
        /// amount = { min = 10, max = 99.5 }, user_id = { exists = true }, ip = { prefix = "10." } }: which events count.
        /// measures = ["count", { sum = "/amount" }, { unique = "user_id" }, { top = "ip", k = 10 }]; also min, max, avg; as = "…"
        /// names one. max_groups = 10000 (a window; further ones are the group "…other"). A changed
        /// definition is refused until it is rebuilt from the archive (ingestd rebuild NAME), or has a new name.
        aggregate: Vec<AggregateConfig> = default_aggregates(&EventConfig::default()), Aggregates, Restart;
        + data: DataConfig;
        + http: HttpConfig;
        + admin: AdminConfig;
        + event: EventConfig;
        + queue: QueueConfig;
        + batch: BatchConfig;
        + spool: SpoolConfig;
        + upload: UploadConfig;
        + archive: ArchiveConfig;
        + store: StoreConfig;
        + aggregator: AggregatorConfig;
        + disk: DiskConfig;
        + supervision: SupervisionConfig;
        + shutdown: ShutdownConfig;
        + logging: LoggingConfig;
    }

    "data."
    DataConfig {
        /// Below it live the spool, the embedded log and store, and the local archive. One process has it at a time.
        dir: PathBuf = PathBuf::from("data"), Text, Restart;
    }

    "http."
    HttpConfig {
        /// The public side: POST /v1/events, POST /v1/logs, the paths of [[http.source]], and GET /health. A name is bound at all
        /// of its addresses.
        listen: String = "127.0.0.1:8080".to_owned(), Text, Restart;
        /// Largest request, as it comes and, where it has a Content-Encoding, inflated.
        max_body: ByteSize = ByteSize(16 * MIB), Size(1, GIB), Live;
        /// Largest event, with the attributes beside its data. A Kafka topic that is created gets room for it (and 64 KiB), an
        /// existing one must have it: up to 960KiB the brokers' default does.
        max_event: ByteSize = ByteSize(960 * KIB), Size(1, LARGEST_EVENT), LiveWithoutKafka;
        /// Events in a request.
        max_events: usize = 10_000, Integer(1, 10_000_000), Live;
        /// After it a request is answered, whatever the state of the queue; after 3s, when Kafka is known to take nothing. On
        /// Kafka the delivery timeout is below it.
        request_timeout: Duration as "duration" = Duration::from_secs(10), Kind::Duration(ATTEMPT, HOUR), LiveWithoutKafka;
        /// Bytes of all requests that are being handled, with some 300 for each event and its place in the answer; beyond it
        /// clients hear 503. At least max_body, and it should be above 300 times max_events as well. A compressed request counts
        /// with what inflates it, too (windows of up to 8MiB for zstd, 16MiB for br), but until it is whole for no more than max_body.
        max_in_flight: ByteSize = ByteSize(64 * MIB), Size(1, PIB), Live;
        /// How long a connection may be idle between two requests: longer than the load balancer in front lets it (60s are usual),
        /// so that it closes first. When connections are scarce it is 5s.
        idle_timeout: Duration as "duration" = Duration::from_secs(75), Kind::Duration(SECOND, DAY), Live;
        /// For a request's head from its first byte, and for a connection's first head, or its TLS handshake, from the beginning.
        head_timeout: Duration as "duration" = Duration::from_secs(5), Kind::Duration(ATTEMPT, HOUR), Live;
        /// Connections of one address (of IPv6, one /64) at the same time; 0 is no limit. Further ones hear 503, or with TLS nothing.
        /// Behind a load balancer all are of its address.
        max_connections_per_address: usize = 0, Integer(0, 1_000_000), Live;
        /// How many events one address may send, in a second and at once: "1000/s burst 5000"; "none" is no limit. An IPv6 network
        /// of /64 is one address. Not for requests with a key that has a rate of its own. Beyond it clients hear 429.
        rate: RateLimit = RateLimit::default(), Kind::Rate, Live;
        /// Proxies in front, by address or network (["10.0.0.0/8"]): only they are believed where a request comes from, by
        /// Forwarded, X-Forwarded-For, or PROXY protocol v2 (docs/security.md).
        trusted_proxies: TrustedProxies = TrustedProxies::default(), List, Live;
        /// Bodies of other shapes than ours. What is POSTed to the path is taken apart as the other keys say. records: a JSON
        /// pointer (RFC 6901) to the array of events in the body, "" where the body is one; absent, the body is one event. type,
        /// id, time and client: pointers into an event, or { fixed = "alert" }; what is absent is looked for as [event] says.
        /// answer: the body of a success, where a sender wants one of its own. signature: { scheme = "standard-webhooks" (or
        /// "github", "stripe"), secret_file = "/etc/ingestd/secret" } lets in who signs with that secret, and needs no key. key:
        /// a pointer into the body to the sender's key, where it sends none in its head (docs/security.md). packaging/sources/
        /// has ready ones, docs/sources.md says more.
        source: Vec<HttpSource> = Vec::new(), Sources(&[
            r#"path = "/v1/batch""#,
            r#"records = "/batch""#,
            r#"type = "/type""#,
            r#"id = "/messageId""#,
            r#"time = "/timestamp""#,
            r#"client = "/userId""#,
            r#"key = "/writeKey""#,
        ]), Live;
        + tls: HttpTlsConfig;
        + auth: AuthConfig;
        + cors: CorsConfig;
    }

    "http.tls."
    /// TLS 1.2 and 1.3 on http.listen (docs/security.md). cert and key turn it on, at the start; from then on other paths, and
    /// other content of the files, are live: new connections go by them, open ones go on.
    HttpTlsConfig {
        /// The certificate with its chain, its own first, and its private key, without a passphrase: files, both PEM.
        cert: String = String::new(), Text, LiveOnceOn;
        key: String = String::new(), Text, LiveOnceOn;
        /// CAs as PEM. With them each client has to show a certificate of one of them; its name stands in the records' header
        /// ingestd-client.
        client_ca: String = String::new(), Text, LiveOnceOn;
    }

    "http.auth."
    /// Who may send events (docs/security.md). Without a key here everybody may.
    AuthConfig {
        /// One key turns authentication on, for all paths but /health and /openapi.json. `ingestd key new NAME` prints a key and
        /// the lines for it. name: stands in the records' header ingestd-key, and in metrics. hash: SHA-256 of the key. types: the
        /// types of events that it may send; absent, all. expires: RFC 3339. on_invalid: for requests with this key, in the place
        /// of event.on_invalid. rate: how many events it may send, in the place of http.rate; "none" is no limit.
        keys: HttpKeys = HttpKeys::default(), Senders(&[
            r#"name = "shop""#,
            r#"hash = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#,
            r#"types = ["login_success", "login_failed"]"#,
            r#"expires = "2027-01-31T00:00:00Z""#,
            r#"on_invalid = "quarantine""#,
            r#"rate = "1000/s burst 5000""#,
        ]), Live;
    }

    "http.cors."
    /// Web pages of other origins. Without an origin here browsers keep them from reading answers and from sending JSON.
    CorsConfig {
        /// The origins whose pages may send events and read the answers, as browsers send them: "https://app.example.com" (scheme,
        /// host, and the port where it is not the scheme's own), or "*" for all. "null", which pages of files and of sandboxed
        /// frames send, has to be named, beside "*", too.
        origins: Vec<String> = Vec::new(), List, Live;
        /// How long a browser may go by one answer before it asks again whether a page may send JSON. Chromium takes at most 2h,
        /// Firefox 24h.
        max_age: Duration as "duration" = 2 * HOUR, Kind::Duration(Duration::ZERO, DAY), Live;
    }

    "admin."
    AdminConfig {
        /// The operators' side: health, metrics, status, reload, queries, dead letters. Without admin.auth.keys everybody who
        /// reaches it is an operator: keep it private.
        listen: String = "127.0.0.1:9600".to_owned(), Text, Restart;
        + auth: AdminAuthConfig;
        + tls: AdminTlsConfig;
    }

    "admin.auth."
    /// Who may look, and operate (docs/security.md). Without a key here everybody may.
    AdminAuthConfig {
        /// One key turns authentication on, for all paths but /health/live, /openapi.json and whether it is ready.
        /// `ingestd key new NAME --admin` prints a key and the lines for it. name: stands in the log. hash: SHA-256 of the key.
        /// access: "read" is all that is asked by GET, "operate" also reloads, replays and purges. expires: RFC 3339.
        keys: AdminKeys = AdminKeys::default(), Operators(&[
            r#"name = "ops""#,
            r#"hash = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#,
            r#"access = "operate""#,
            r#"expires = "2027-01-31T00:00:00Z""#,
        ]), Live;
    }

    "admin.tls."
    /// The same for admin.listen. `ingestd dlq` then asks it by https.
    AdminTlsConfig {
        cert: String = String::new(), Text, LiveOnceOn;
        key: String = String::new(), Text, LiveOnceOn;
        client_ca: String = String::new(), Text, LiveOnceOn;
    }

    "event."
    /// The fields at the top of an event that are read.
    EventConfig {
        type_field: String = "type".to_owned(), Text, Restart;
        id_field: String = "event_id".to_owned(), Text, Restart;
        time_field: String = "timestamp".to_owned(), Text, Restart;
        client_field: String = "client_id".to_owned(), Text, Restart;
        /// Its value is the key of the log record, which decides the partition. Empty: client_field. Of a CloudEvent the key is
        /// its partitionkey, else its source, unless this is one of the three fields above that are not the client's.
        key_field: String = String::new(), Text, Restart;
        /// Events that not every reader of JSON can read (RFC 7493: a name twice in one object, half of a surrogate pair, a
        /// number beyond a double's range; numbers of more than 1,000 characters, names of more than 50,000 bytes): "reject"
        /// them as invalid_json, or "accept" them: counted as any other, and "raw" in the archive (docs/reading.md).
        on_unreadable: OnUnreadable = OnUnreadable::Reject, OneOf(OnUnreadable::WORDS), Restart;
        /// Events whose time cannot be read, or is absurd: before 1970, or beyond max_past or max_future. "receipt" stores them,
        /// counts them by the time of their receipt, and names them in the answer's warnings; "reject" refuses them as
        /// invalid_timestamp.
        on_invalid_time: OnInvalidTime = OnInvalidTime::Receipt, OneOf(OnInvalidTime::WORDS), Restart;
        /// How far the time of an event may lie behind its receipt, and ahead of it. A change holds for the records that nobody has
        /// counted yet, so that one that is read again falls into the same window (docs/design.md, 3.5).
        max_past: Duration as "duration" = TEN_YEARS, Kind::Duration(Duration::from_secs(1), LONGEST_FUTURE), Restart;
        max_future: Duration as "duration" = DAY, Kind::Duration(Duration::ZERO, LONGEST_FUTURE), Restart;
        /// What becomes of wrong events: "reject" them (207, or 400), or "quarantine" them: each is kept as a dead letter, and the
        /// answer is 200 when that is durable. For senders that take 207 for a failure and send all again, or for success. A body
        /// that cannot be split is one letter; what is larger than a letter may be is rejected all the same.
        on_invalid: OnInvalid = OnInvalid::Reject, OneOf(OnInvalid::WORDS), LiveWithoutKafka;
        /// Events whose type is none of [[event.types]]: "accept" them, whatever they are, or "reject" them as unknown_type.
        unknown_type: UnknownType = UnknownType::Accept, OneOf(UnknownType::WORDS), Live;
        /// Types of events, and what each has to be. name: as events write it. schema: the path, from the folder of this file on,
        /// of a JSON Schema (2020-12), which may refer to others in its own folder; an event that does not match it is wrong
        /// (schema). Of a CloudEvent its data has to match. packaging/schemas/ has ready ones, docs/security.md says more.
        types: EventTypes = EventTypes::default(), Types(&[
            r#"name = "login_success""#,
            r#"schema = "schemas/login_success.json""#,
        ]), Live;
    }

    "queue."
    QueueConfig {
        /// "embedded" (a log in data.dir) or "kafka".
        kind: QueueKind = QueueKind::Embedded, OneOf(QueueKind::WORDS), Restart;
        /// What happens to events while Kafka is away: "reject" them with 503, or "buffer" them in data.dir, up to
        /// queue.embedded.quota: accepted when they are on the disk, and forwarded in their order when Kafka is back. Away is
        /// also a topic of which one partition takes no writes.
        on_unavailable: OnUnavailable = OnUnavailable::Reject, OneOf(OnUnavailable::WORDS), Restart;
        /// The topic; dead letters go to <topic>.dlq. Part of the archive's paths.
        topic: String = "events".to_owned(), Text, Restart;
        /// Raise it when the topic was deleted and made anew: the archive's paths and the buckets start afresh.
        generation: u32 = 0, Integer(0, u32::MAX as i64), Restart;
        + embedded: EmbeddedQueueConfig;
        + kafka: KafkaConfig;
    }

    "queue.embedded."
    EmbeddedQueueConfig {
        /// At this size events are refused with 503, and the process is unready, until a tenth of it is free again. The buffer
        /// in front of Kafka has the same. Wrong events that are quarantined must find room in it beside the records.
        quota: ByteSize = ByteSize(8 * GIB), Size(1, PIB), Live;
        /// How long records stay that all sinks have, at least: they go in pieces of a mebibyte and more.
        retention: Duration as "duration" = Duration::ZERO, Kind::Duration(Duration::ZERO, TEN_YEARS), Live;
    }

    "queue.kafka."
    KafkaConfig {
        /// HOST:PORT, several separated by commas. Needed for kind = "kafka".
        brokers: String = String::new(), Text, Restart;
        /// The consumer groups are <group>-archive and <group>-aggregate; dead letters are read and replayed as <group>-dlq, and
        /// archived records are replayed as <group>-archive-replay-<topic>.
        group: String = "ingestd".to_owned(), Text, Restart;
        /// Create the topic, and that of the dead letters, when they are missing: with so many partitions and replicas. A topic
        /// that exists with fewer replicas, or other partitions, is taken and named. Brokers never create one for this daemon.
        create_topic: bool = true, Flag, Restart;
        partitions: i32 = 4, Integer(1, 100_000), Restart;
        replication: i32 = 1, Integer(1, MOST_REPLICAS), Restart;
        /// Any librdkafka setting, but for those that would break a promise (they are refused by name). Values are strings;
        /// numbers and booleans are taken as such. In the environment underscores stand for dots:
        /// INGESTD__QUEUE__KAFKA__PROPERTIES__SASL_PASSWORD is sasl.password, …__SASL_PASSWORD_FILE is sasl.password_file.
        properties: BTreeMap<String, String> = BTreeMap::new(), Options(&[
            r#""security.protocol" = "SASL_SSL""#,
            r#""sasl.mechanism" = "SCRAM-SHA-512""#,
            r#""sasl.username" = "ingestd""#,
            r#""sasl.password_file" = "/run/secrets/kafka-password""#,
        ]), Restart;
    }

    "batch."
    /// What a consumer hands on at once: whichever bound is met first.
    BatchConfig {
        max_records: usize = 1000, Integer(1, 10_000_000), Live;
        max_bytes: ByteSize = ByteSize(4 * MIB), Size(1, GIB), Live;
        max_wait: Duration as "duration" = Duration::from_millis(200), Kind::Duration(MS, MINUTE), Live;
    }

    "spool."
    /// The segments on disk that become the archive's objects: sealed at whichever bound is met first.
    SpoolConfig {
        /// Compressed; at most upload.max_in_flight.
        max_bytes: ByteSize = ByteSize(16 * MIB), Size(1, 4 * GIB), Live;
        max_records: u64 = 1_000_000, Integer(1, i64::MAX), Live;
        max_age: Duration as "duration" = MINUTE, Kind::Duration(MS, DAY), Live;
        /// Of all segments that wait; beyond it fetching for the archive pauses.
        quota: ByteSize = ByteSize(8 * GIB), Size(1, PIB), Live;
    }

    "upload."
    UploadConfig {
        /// Partitions that upload at the same time at most (one at first, one more with each answer of the store, one again when
        /// it does not answer), and the bytes of their segments in memory (the archive below data.dir takes their files as they
        /// are).
        max_parallel: usize = 4, Integer(1, 1024), Restart;
        max_in_flight: ByteSize = ByteSize(32 * MIB), Size(1, PIB), Restart;
        /// One attempt; a store that does not answer by then is tried again.
        timeout: Duration as "duration" = MINUTE, Kind::Duration(ATTEMPT, HOUR), Restart;
        /// The first pause after a failed attempt, and the longest: doubled each time, with jitter of ±20 %.
        backoff: Duration as "duration" = Duration::from_millis(200), Kind::Duration(MS, MINUTE), Live;
        max_backoff: Duration as "duration" = Duration::from_secs(15), Kind::Duration(MS, HOUR), Live;
    }

    "archive."
    ArchiveConfig {
        /// "file:" (archive/ below data.dir), "file:///absolute/path", "s3://bucket/prefix", "gs://bucket/prefix",
        /// "az://container/prefix", or "none". Keys begin with the prefix as it is typed. Several workers need a store that all
        /// share, not a folder.
        url: String = "file:".to_owned(), Text, Restart;
        /// What to do where the log has lost records before they were archived: "halt" that partition until `ingestd archive
        /// skip` or this says that they may be left (a reload suffices), or "skip" them.
        on_gap: OnGap = OnGap::Halt, OneOf(OnGap::WORDS), Live;
        /// As the object_store library names them; S3: endpoint, region, access_key_id, secret_access_key, session_token,
        /// virtual_hosted_style_request, checksum_algorithm (sha256, crc64nvme or none) …; GCS: base_url, service_account,
        /// application_credentials …; Azure: endpoint, account_name, account_key …; all: allow_http (implied by an endpoint or
        /// base_url of http://), allow_invalid_certificates, connect_timeout, timeout, proxy_url.
        /// What is empty is not set. Secrets are also taken from the environment under the clouds' own names (AWS_ACCESS_KEY_ID
        /// …), and here as INGESTD__ARCHIVE__OPTIONS__SECRET_ACCESS_KEY. What is said here wins, whole: the environment's
        /// endpoints are not asked where one is named here, and its tokens and roles do not go with keys that are named here.
        options: BTreeMap<String, String> = BTreeMap::new(), Options(&[
            r#"endpoint = "http://127.0.0.1:8333""#,
            r#"region = "us-east-1""#,
            r#"access_key_id = "ingestd""#,
            r#"secret_access_key_file = "/run/secrets/s3-secret""#,
        ]), Restart;
    }

    "store."
    /// Where the aggregates are kept.
    StoreConfig {
        /// "embedded" (a file in data.dir), "mongodb", or "none" (no aggregates).
        kind: StoreKind = StoreKind::Embedded, OneOf(StoreKind::WORDS), Restart;
        /// mongodb://user:password@host:27017/?authSource=admin. Options that weaken the write concern are refused. In a file of
        /// its own: url_file = "/run/secrets/mongodb-url"
        url: String = String::new(), Text, Restart;
        /// Empty: the one that the URL names, unless that is admin, local or config; else "ingestd". Where "ingestd" holds
        /// aggregates already and the URL's does not, "ingestd" stays in use.
        database: String = String::new(), Text, Restart;
        /// Keep each parsed event as a document, too, for so long: GET /v1/events of the admin listener finds them. Turned off, those that
        /// are kept go at their time all the same.
        events: bool = false, Flag, Restart;
        events_ttl: Duration as "duration" = 30 * DAY, Kind::Duration(SECOND, LONGEST_TTL), Restart;
    }

    "aggregator."
    /// When counts are written.
    AggregatorConfig {
        /// Whichever bound is met first: the time, or so many buckets that were touched.
        flush_interval: Duration as "duration" = SECOND, Kind::Duration(MS, HOUR), Live;
        flush_buckets: usize = 10_000, Integer(1, 10_000_000), Live;
        /// One attempt; a store that does not answer by then is tried again.
        timeout: Duration as "duration" = Duration::from_secs(30), Kind::Duration(ATTEMPT, HOUR), Restart;
    }

    "disk."
    /// Of the file system that holds data.dir, as df prints it. Above max_used_percent, or with fewer than 64 free inodes, events
    /// are refused with 503 and fetching pauses; below resume_percent, and with 128 inodes, both go on.
    DiskConfig {
        max_used_percent: f64 = 70.0, Percent, Live;
        resume_percent: f64 = 65.0, Percent, Live;
        check_interval: Duration as "duration" = SECOND, Kind::Duration(MS, HOUR), Live;
    }

    "supervision."
    /// An actor that fails is built anew, after a pause that doubles; one that fails more often than this within the window
    /// ends the process.
    SupervisionConfig {
        max_restarts: u32 = 5, Integer(0, 1_000_000), Restart;
        window: Duration as "duration" = MINUTE, Kind::Duration(MS, DAY), Restart;
        backoff: Duration as "duration" = Duration::from_millis(200), Kind::Duration(MS, LONGEST_RESTART), Restart;
    }

    "shutdown."
    ShutdownConfig {
        /// For a stop in order; past it the process names what is stuck and exits with 4.
        timeout: Duration as "duration" = Duration::from_secs(30), Kind::Duration(ATTEMPT, HOUR), Live;
    }

    "logging."
    LoggingConfig {
        /// off, error, warn, info, debug or trace, also by target: "info,ingestd::archive=debug".
        level: String = "info".to_owned(), Text, Live;
        /// "text" or "json", on stderr.
        format: LogFormat = LogFormat::Text, OneOf(LogFormat::WORDS), Restart;
    }
}

words! {
    /// What the ingestor does with an event that not every reader of JSON can read.
    OnUnreadable {
        /// It is refused as `invalid_json`.
        Reject = "reject",
        /// It is taken and counted as any other, and stands as `"raw"` in the archive.
        Accept = "accept",
    }
}

words! {
    /// What the ingestor does with an event whose time cannot be read, or is absurd.
    OnInvalidTime {
        /// It is taken, counted by the time of its receipt, and named in the answer.
        Receipt = "receipt",
        /// It is refused as `invalid_timestamp`.
        Reject = "reject",
    }
}

words! {
    /// What the ingestor does with a wrong event.
    OnInvalid {
        /// Its client hears of it, and nobody keeps it.
        Reject = "reject",
        /// It is kept as a dead letter.
        Quarantine = "quarantine",
    }
}

words! {
    /// Where the log is.
    QueueKind { Embedded = "embedded", Kafka = "kafka" }
}

words! {
    /// What happens to events while Kafka is away.
    OnUnavailable {
        /// They are refused with 503.
        Reject = "reject",
        /// They are made durable in `data.dir`, and forwarded when Kafka is back.
        Buffer = "buffer",
    }
}

words! {
    /// What the archive does at a gap.
    OnGap { Halt = "halt", Skip = "skip" }
}

words! {
    /// Where the aggregates are kept.
    StoreKind { Embedded = "embedded", Mongodb = "mongodb", None = "none" }
}

words! {
    /// How a line of the log is written.
    LogFormat { Text = "text", Json = "json" }
}

#[cfg(test)]
mod tests;

//! The routes of the ingest listener, and a request's way from its head to its answer.

mod admission;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, StatusCode, header::ContentType},
    web::{self, ServiceConfig},
};
use bytes::Bytes;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio_util::task::TaskTracker;

use self::admission::Admitted;
use super::{
    arrival::{Arrival, CLIENT_HEADER},
    aside::{Turn, aside},
    auth,
    check::Checked,
    coding::Coding,
    conforming::Conforming,
    format::Format,
    in_flight::{InFlight, Reservation},
    openapi,
    otlp::{self, Encoding},
    pages,
    preferences::{Handling, Preferences, applied},
    problems::{beside_letters, not_allowed, not_kept, not_taken, refused, unknown},
    proof::{self, Arriving},
    quarantine,
    rates::{self, Rates},
    replies::{self, summary},
    shape::{Shape, is_large},
    source, trace,
};
use crate::{
    config::{Config, HttpKey, HttpSource, LiveConfig, OnInvalid},
    event::{Code, EventFields, Invalid},
    health::Health,
    http::{self, Problem, request_id},
    log::{
        Delivery, Ingress, NewRecord, Publish, Ticket, dead_letters::Quarantine, kafka, largest_record,
        record::KEY_HEADER,
    },
    metrics::{KeyLabel, Metrics, ReasonLabel, StatusLabel},
    names::{ActorName, dependency},
    openapi::Document,
    position::Timestamp,
};

/// What the workers share. Limits are read from the live configuration once a request.
pub struct Intake {
    ingress: Ingress,
    quarantine: Arc<dyn Quarantine>,
    config: LiveConfig,
    /// As at the start: what the log's readers go by, too.
    fields: EventFields,
    health: Health,
    metrics: Arc<Metrics>,
    /// `requests{status="200"}`, kept at hand because nearly every request counts here.
    answered_ok: Counter,
    /// Requests being handled, so that a stop can wait for them.
    in_flight: InFlight,
    rates: Rates,
    under_way: TaskTracker,
    /// Requests that wait for the producer's answer.
    waiting: Gauge,
}

/// Whose key a request has.
pub type Sender = Option<Arc<HttpKey>>;

const LOGS: &str = "/v1/logs";
/// Paths of ours at which events arrive.
const EVENTS: [&str; 2] = ["/v1/events", LOGS];

/// Counts a request as waiting, until it is dropped.
struct Waiting(Gauge);

impl Waiting {
    fn enter(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How often a request that waits for long looks whether its queue has gone.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LATE: &str = "the queue did not confirm in time (http.request_timeout)";

impl Intake {
    pub fn new(
        ingress: Ingress,
        quarantine: Arc<dyn Quarantine>,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> Self {
        let fields = EventFields::from(&config.load().event);
        let answered_ok = metrics.requests.get_or_create_owned(&StatusLabel { status: 200 });
        let waiting = metrics.depth(ActorName::Producer);
        waiting.set(0);
        let under_way = TaskTracker::new();
        let in_flight = InFlight { all: metrics.in_flight_bytes.clone(), large: metrics.in_flight_large_bytes.clone() };
        let rates = Rates::new(metrics.clone());
        Self { ingress, quarantine, config, fields, health, metrics, in_flight, rates, answered_ok, under_way, waiting }
    }

    /// Resolves when no request is being handled.
    pub async fn idle(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    /// Reads a body of this coding and shape, checks its events, and makes the valid ones durable, wrong ones too where they
    /// are kept. The answer to them is to be a part of the reservation.
    async fn accept(
        self: &Arc<Self>,
        request: &HttpRequest,
        arriving: Arriving,
        coding: Option<Coding>,
        shape: Shape,
        preferences: Preferences,
        admitted: Admitted,
    ) -> Result<(Checked, Reservation), Problem> {
        let handling = preferences.handling;
        let Admitted { config, sender } = admitted;
        let (body, share) = arriving.body(request, coding, &config.http, &self.in_flight).await?;
        let (body, sender) = match shape.key_in_body().filter(|_| !config.http.auth.keys.is_empty()) {
            Some(pointer) => {
                let was_known = sender.is_some();
                let keyed = proof::keyed(request, body, pointer, &config, &share, &self.metrics, sender).await;
                if was_known { keyed? } else { self.limited_by_body(request, &config.http, keyed)? }
            }
            None => (body, sender),
        };
        let received = Timestamp::now();
        let is_strict = handling == Some(Handling::Strict);
        let quarantines = auth::on_invalid(sender.as_deref(), &config) == OnInvalid::Quarantine && !is_strict;
        let whole = quarantines.then(|| {
            let mut beside = shape.beside();
            sender.iter().for_each(|key| beside.set(KEY_HEADER, key.name.clone()));
            http::certified(request).iter().for_each(|name| beside.set(CLIENT_HEADER, name.to_string()));
            (body.clone(), trace::beside(beside, request.headers()))
        });
        let share = share.beside();
        let (checked, mut share) = self.check(request, body, shape, &config, (received, sender.clone()), share).await;
        let mut checked = match (checked, whole) {
            (Err(Problem { code: Some(code), detail, .. }), Some((body, beside))) => {
                let checked = Checked::unsplittable(body, Invalid::new(code, detail), &beside);
                share.grow(checked.aside.capacity() + replies::longest_answer(&checked))?;
                checked
            }
            (Ok(Checked { refusal: Some(problem), .. }), None) => return Err(problem),
            (checked, _) => checked?,
        };
        self.rates.charge(request, &checked)?;
        if handling == Some(Handling::Lenient) {
            let room = share.grow(checked.records.len() * replies::UNAVAILABLE);
            room.map_err(|problem| for_nothing(request, &checked, problem))?;
        }
        if preferences.positions {
            let room = share.grow(checked.records.len() * replies::POSITION);
            room.map_err(|problem| for_nothing(request, &checked, problem))?;
            // Of none there is nothing to say, and that is known.
            checked.positions = Some(Vec::new());
        }
        let largest = largest_record(&config).filter(|_| is_strict || quarantines);
        if let Some(largest) = largest {
            checked.refuse_larger(largest);
        }
        if is_strict && !checked.errors.is_empty() {
            checked.records.clear();
            checked.accepted.clear();
            checked.warnings.clear();
        }
        // A broker may know better than its client what it takes.
        let may_be_refused = quarantines && largest.is_some();
        if may_be_refused {
            let room = share.grow(checked.records.len() * size_of::<NewRecord>());
            room.map_err(|problem| for_nothing(request, &checked, problem))?;
        }
        let records = if may_be_refused { checked.records.clone() } else { Vec::new() };
        // Before the events: where this fails, nothing of them is stored, and the request can come again.
        if quarantines && quarantine::is_any_due(&checked) {
            let aside = std::mem::take(&mut checked.aside);
            let kept = self.keep(request, &mut checked, &aside, share.another(), received, &config).await;
            checked.aside = aside;
            kept.map_err(|problem| for_nothing(request, &checked, problem))?;
        }
        if !checked.records.is_empty() {
            let kept = checked.quarantined();
            let aside = match std::mem::take(&mut checked.aside) {
                none if none.is_empty() => Bytes::new(),
                // Like the body, it counts for as long as the queue works on it, also when the client has given up.
                aside => share.split_off(aside.capacity()).hold(aside),
            };
            let published = self.publish(request, &mut checked, aside.clone(), received, &config, preferences).await;
            let mut delivery = published.map_err(|problem| beside_letters(problem, kept))?;
            checked.settle(&delivery, &records);
            checked.positions = delivery.take_positions().filter(|_| preferences.positions);
            if may_be_refused && quarantine::is_any_due(&checked) {
                let kept = self.keep(request, &mut checked, &aside, share.another(), received, &config).await;
                // Others are stored by now, and must not come again.
                kept.unwrap_or_else(|_| quarantine::settle_none(&mut checked));
            }
        }
        self.metrics.events_accepted.inc_by(checked.accepted.len() as u64);
        if let Some(key) = sender {
            let of_key = self.metrics.events_accepted_by_key.get_or_create_owned(&KeyLabel { key: key.name.clone() });
            of_key.inc_by(checked.accepted.len() as u64);
        }
        // Their neighbours mostly share their code.
        let rejected: Vec<Code> = checked.rejected().map(|error| error.invalid.code).collect();
        for alike in rejected.chunk_by(|a, b| a == b) {
            self.rejected(alike[0], alike.len());
        }
        for alike in checked.warnings.chunk_by(|a, b| a.code == b.code) {
            let reason = alike[0].code.as_str();
            self.metrics.events_warned.get_or_create(&ReasonLabel { reason }).inc_by(alike.len() as u64);
        }
        Ok((checked, share))
    }

    async fn check(
        self: &Arc<Self>,
        request: &HttpRequest,
        body: Bytes,
        shape: Shape,
        config: &Arc<Config>,
        (received, sender): (Timestamp, Sender),
        mut share: Reservation,
    ) -> (Result<Checked, Problem>, Reservation) {
        let (further, client) = (trace::of(request.headers()), http::certified(request));
        if !shape.is_long(&body, config.event.types.has_schemas()) {
            let conforming = Conforming::of(config, &share);
            let (key, client, conforming) = (sender.as_deref(), client.as_deref(), conforming.as_ref());
            let arrival = Arrival { received, key, client, conforming };
            let checked = shape.check(body, &config.http, &self.fields, arrival, &mut share);
            return (trace::carried(checked, further.as_deref(), &mut share), share);
        }
        let Ok(turn) = tokio::time::timeout(config.http.request_timeout, Turn::of(is_large(&body))).await else {
            let timeout = humantime::format_duration(config.http.request_timeout);
            let detail = format!(
                "the events were not checked within {timeout} (http.request_timeout), beside others: try again"
            );
            return (Err(Problem::unavailable(detail)), share);
        };
        let (intake, live, of_failure) = (self.clone(), config.clone(), share.another());
        let checking = move || {
            let conforming = Conforming::of(&live, &share);
            let (key, client, conforming) = (sender.as_deref(), client.as_deref(), conforming.as_ref());
            let arrival = Arrival { received, key, client, conforming };
            let checked = shape.check(body, &live.http, &intake.fields, arrival, &mut share);
            (trace::carried(checked, further.as_deref(), &mut share), share)
        };
        aside(turn, checking).await.unwrap_or_else(|error| {
            let request_id = request_id::of(request.headers());
            tracing::error!(request_id, %error, "checking a body failed");
            let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be checked");
            (Err(problem), of_failure)
        })
    }

    /// Makes letters of what is wrong, and waits until they are durable. `cost` is what they are to be counted in.
    async fn keep(
        &self,
        request: &HttpRequest,
        checked: &mut Checked,
        aside: &[u8],
        mut cost: Reservation,
        received: Timestamp,
        config: &Config,
    ) -> Result<(), Problem> {
        // A buffer takes events meanwhile, and no letters.
        if let Some(outage) = self.health.outage(&[dependency::KAFKA]) {
            return Err(not_kept(&outage));
        }
        cost.grow(quarantine::cost(checked))?;
        let kept = self.quarantine.keep(quarantine::letters(checked, aside, &config.queue, received));
        // Not the request's own: a client that goes away leaves it alone.
        let kept = self.under_way.spawn(async move {
            let _cost = cost;
            kept.await
        });
        let too_large = match self.confirmed(kept, || false, config.http.request_timeout).await {
            Ok(Ok(Ok(too_large))) => too_large,
            Ok(Ok(Err(error))) => return Err(not_kept(&format!("{error:#}"))),
            Ok(Err(error)) => {
                let request_id = request_id::of(request.headers());
                tracing::error!(request_id, %error, "keeping dead letters failed");
                return Err(not_kept("their task ended"));
            }
            Err(why) => return Err(not_kept(&why)),
        };
        for code in quarantine::settle(checked, &too_large) {
            let reason = code.as_str();
            self.metrics.events_quarantined.get_or_create(&ReasonLabel { reason }).inc();
        }
        Ok(())
    }

    /// Waits until the records are durable, or refused for their size. Where each has its own answer, others may have failed.
    async fn publish(
        &self,
        request: &HttpRequest,
        checked: &mut Checked,
        aside: Bytes,
        received: Timestamp,
        config: &Config,
        preferences: Preferences,
    ) -> Result<Delivery, Problem> {
        let unanswered = &self.metrics.events_produced_unanswered;
        let is_of_each = preferences.handling == Some(Handling::Lenient);
        let new = if is_of_each { Ticket::of_each } else { Ticket::new };
        let (ticket, mut delivery) = new(checked.records.len(), unanswered.clone());
        if preferences.positions {
            ticket.want_positions();
        }
        let publish = Publish {
            body: checked.body.clone(),
            aside,
            events: std::mem::take(&mut checked.records),
            received,
            ticket,
        };
        let asked = Arc::downgrade(&publish.ticket);
        let is_buffered = || asked.upgrade().is_some_and(|ticket| ticket.is_buffered());
        let _waiting = Waiting::enter(&self.waiting);
        self.ingress.publish(publish).map_err(|why| for_nothing(request, checked, not_taken(why)))?;
        // The whole timeout again, after that for the body: the queue's own delivery timeout is just below it, so that
        // an answer "unknown" stays rare.
        let confirmed = self.confirmed(&mut delivery, is_buffered, config.http.request_timeout).await;
        let delivery = match confirmed {
            Ok(Ok(delivery)) => delivery,
            Ok(Err(_)) => return Err(unknown(LATE)),
            Err(why) if is_of_each => {
                let known = asked.upgrade().and_then(|ticket| ticket.give_up(&why));
                known.or_else(|| delivery.try_recv().ok()).ok_or_else(|| unknown(&why))?
            }
            Err(why) => return Err(unknown(&why)),
        };
        let is_something_durable = delivery.durable > 0 || checked.quarantined() > 0;
        let problem = match (&delivery.unavailable, &delivery.refused) {
            (None, None) => return Ok(delivery),
            _ if is_of_each && is_something_durable => return Ok(delivery),
            (None, Some(reason)) if delivery.durable == 0 => for_nothing(request, checked, refused(reason)),
            (Some(reason), _) | (None, Some(reason)) => unknown(reason),
        };
        unanswered.inc_by(delivery.durable as u64);
        Err(problem)
    }

    /// Waits for the log's answer, at most `timeout`; while it is known that Kafka takes nothing, for moments unless
    /// the buffer has the events. The error says why there is none.
    async fn confirmed<T>(
        &self,
        mut answer: impl Future<Output = T> + Unpin,
        is_buffered: impl Fn() -> bool,
        timeout: Duration,
    ) -> Result<T, String> {
        let deadline = Instant::now() + timeout;
        let mut wait = kafka::UNANSWERED_REQUEST;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(wait.min(left), &mut answer).await {
                Ok(answer) => return Ok(answer),
                Err(_) if wait >= left => return Err(LATE.to_owned()),
                Err(_) => {}
            }
            if !is_buffered()
                && let Some(outage) = self.health.outage(&[dependency::KAFKA, dependency::KAFKA_TOPIC])
            {
                return Err(outage);
            }
            wait = LOOK_AGAIN;
        }
    }

    /// Counts a connection that was refused.
    pub fn refused_proxy(&self, reason: &'static str) {
        self.metrics.proxy_refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Answers a request that brings events, and counts it.
    async fn counted(
        &self,
        request: &HttpRequest,
        // Where it stands: as an argument of its own it would take its room twice.
        answer: Pin<&mut impl Future<Output = Result<HttpResponse, Problem>>>,
    ) -> HttpResponse {
        let started = Instant::now();
        let _under_way = self.under_way.token();
        let mut response = match answer.await {
            Ok(response) => {
                self.answered(response.status());
                response
            }
            Err(problem) => {
                if let Some(code) = problem.code {
                    self.rejected(code, 1);
                }
                self.refuse(problem)
            }
        };
        rates::write(request, response.status(), response.headers_mut());
        self.metrics.request_duration.observe(started.elapsed().as_secs_f64());
        response
    }

    /// Counts an answer.
    pub fn answered(&self, status: StatusCode) {
        if status == StatusCode::OK {
            self.answered_ok.inc();
        } else {
            self.metrics.requests.get_or_create(&StatusLabel { status: status.as_u16() }).inc();
        }
    }

    fn rejected(&self, code: Code, events: usize) {
        let reason = code.as_str();
        self.metrics.events_rejected.get_or_create(&ReasonLabel { reason }).inc_by(events as u64);
    }

    fn refuse(&self, problem: Problem) -> HttpResponse {
        self.answered(problem.status);
        problem.into_response()
    }
}

/// What a request is refused with of which no event was stored: they cost nothing of its rate then, unless dead letters of it stand.
fn for_nothing(request: &HttpRequest, checked: &Checked, problem: Problem) -> Problem {
    if checked.quarantined() == 0 {
        rates::give_back(request);
    }
    problem
}

/// The routes: `POST /v1/events`, `POST /v1/logs`, `GET /health`, `GET /openapi.json` (which describes all), and the paths
/// of `[[http.source]]`, which are live.
pub fn routes(app: &mut ServiceConfig, intake: web::Data<Intake>) {
    let refuse =
        |problem: fn() -> Problem| web::to(move |intake: web::Data<Intake>| async move { intake.refuse(problem()) });
    app.app_data(intake)
        .app_data(web::Data::new(Document::new(openapi::document)))
        .service(
            web::resource("/v1/events")
                .route(web::post().to(post_events))
                .default_service(refuse(|| not_allowed("POST"))),
        )
        .service(
            web::resource("/v1/logs").route(web::post().to(post_logs)).default_service(refuse(|| not_allowed("POST"))),
        )
        .service(
            web::resource("/health")
                .route(web::get().to(get_health))
                .route(web::head().to(get_health))
                .default_service(refuse(|| not_allowed("GET, HEAD"))),
        )
        .service(
            web::resource("/openapi.json")
                .route(web::get().to(get_openapi))
                .route(web::head().to(get_openapi))
                .default_service(refuse(|| not_allowed("GET, HEAD"))),
        )
        .default_service(web::to(any_other));
}

async fn post_events(request: HttpRequest, payload: web::Payload, intake: web::Data<Intake>) -> HttpResponse {
    let preferences = Preferences::of(request.headers());
    let answer = async {
        let admitted = intake.admit(&request)?;
        let coding = Coding::of(request.headers())?;
        let (format, in_headers) = pages::format(request.headers(), &intake.config)?;
        let shape = Shape::Events(format, in_headers);
        let (checked, share) =
            intake.accept(&request, Arriving::Payload(payload), coding, shape, preferences, admitted).await?;
        Ok(summary(&request, checked, share).await)
    };
    applied(intake.counted(&request, pin!(answer)).await, preferences.handling)
}

async fn post_logs(request: HttpRequest, payload: web::Payload, intake: web::Data<Intake>) -> HttpResponse {
    // Its answers have no place for positions.
    let preferences = Preferences { positions: false, ..Preferences::of(request.headers()) };
    let handling = preferences.handling;
    let encoding = match Encoding::of(request.headers()) {
        Ok(encoding) => encoding,
        // Who is none of ours hears that alone.
        Err(problem) => {
            let config = intake.config.load_full();
            let refused = async { Err(intake.sender(&request, &config.http).err().unwrap_or(problem)) };
            return applied(intake.counted(&request, pin!(refused)).await, handling);
        }
    };
    let mut honoured = handling;
    let taken = async {
        let admitted = intake.admit(&request)?;
        let Admitted { config, sender } = &admitted;
        pages::check(request.headers(), &config.http.cors)?;
        let keeps_wrong =
            auth::on_invalid(sender.as_deref(), config) == OnInvalid::Quarantine && handling != Some(Handling::Strict);
        let coding = Coding::of(request.headers())?;
        let shape = Shape::Logs { encoding, keeps_wrong };
        let (checked, share) =
            intake.accept(&request, Arriving::Payload(payload), coding, shape, preferences, admitted).await?;
        // As `applied` knows it by the status of other answers.
        let was_broken = !checked.errors.is_empty() && !checked.accepted.is_empty();
        honoured = handling.filter(|handling| *handling != Handling::Strict || !was_broken);
        Ok(otlp::answer(encoding, &checked, share))
    };
    let answer = async {
        taken.await.or_else(|problem: Problem| {
            // Refusals have the encoding of the request, too.
            problem.code.into_iter().for_each(|code| intake.rejected(code, 1));
            Ok(otlp::refusal(encoding, problem))
        })
    };
    let response = intake.counted(&request, pin!(answer)).await;
    applied(response, honoured)
}

/// Whatever is no path of ours may be that of a source.
async fn any_other(request: HttpRequest, payload: web::Payload, intake: web::Data<Intake>) -> HttpResponse {
    let (sent, decoded) = (request.path(), request.match_info().as_str());
    let is_meant = |source: &&HttpSource| source.path == sent || source.path == decoded;
    let source = intake.config.load().http.source.iter().find(is_meant).cloned();
    let Some(source) = source.map(Arc::new) else {
        let detail = "events are taken by POST /v1/events, logs by POST /v1/logs, and other bodies at the paths of \
                      [[http.source]]";
        return intake.refuse(Problem::not_found(detail));
    };
    if request.method() != Method::POST {
        return intake.refuse(not_allowed("POST"));
    }
    let preferences = Preferences::of(request.headers());
    let answer = async {
        let (admitted, arriving) = intake.admit_to(&request, payload, &source).await?;
        pages::check(request.headers(), &admitted.config.http.cors)?;
        let coding = Coding::of(request.headers())?;
        Format::check_charset(request.headers())?;
        // Whatever it is called, JSON is what is read.
        let lines = Format::of(request.headers()).ok().filter(|format| *format == Format::Ndjson);
        let lines = lines.unwrap_or(Format::Json);
        let shape = Shape::Source(source.clone(), lines);
        let (checked, share) = intake.accept(&request, arriving, coding, shape, preferences, admitted).await?;
        let summary = summary(&request, checked, share).await;
        // Who prefers something reads what became of each event.
        Ok(if preferences.is_any() { summary } else { source::answer(summary, &source) })
    };
    applied(intake.counted(&request, pin!(answer)).await, preferences.handling)
}

/// For load balancers: whether events are accepted, and no more.
async fn get_health(intake: web::Data<Intake>) -> HttpResponse {
    if intake.health.readiness().ready {
        intake.answered(StatusCode::OK);
        return HttpResponse::Ok().finish();
    }
    intake.refuse(Problem::unavailable("not ready"))
}

/// The document of this listener, as it is configured at present. It counts as a request's bytes until the client has it.
async fn get_openapi(intake: web::Data<Intake>, document: web::Data<Document>) -> HttpResponse {
    let config = intake.config.load();
    let document = document.of(&config);
    let mut share = Reservation::new(&intake.in_flight, config.http.max_in_flight);
    if let Err(problem) = share.grow(document.len()) {
        return intake.refuse(problem);
    }
    intake.answered(StatusCode::OK);
    HttpResponse::Ok().insert_header(ContentType::json()).body(share.hold(document))
}

//! How many events a client may send: `http.rate` for each address, and `rate` of a key, which stands in its place for whoever has
//! that key.
//!
//! Whether a client has used all of its rate is known from a request's head, and then nothing of its body is read. How many events the
//! body has is known when it is taken apart: then all of them are taken from the bucket, before anything of them is kept, or none is
//! and the request is refused as a whole. A request that is refused for what it is costs one event: so the rate bounds guessing, too,
//! and one of too many events that is read in vain. What was taken is given back where we could not store anything of it.
//!
//! Buckets are those of a rate: a reload that leaves it as it is leaves them, too, and one that changes it begins with full ones.

mod buckets;
mod limiter;

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_http::RequestHead;
use actix_web::{
    HttpMessage as _, HttpRequest,
    http::{
        StatusCode,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use self::{
    buckets::{Client, Ticks},
    limiter::{Limiter, Standing, Verdict, whole_seconds},
};
use super::{check::Checked, handler::Sender};
use crate::{
    config::{HttpConfig, HttpKey, Rate},
    http::{self, Problem},
    metrics::{ByLabel, Metrics},
};

/// draft-ietf-httpapi-ratelimit-headers-10. Its units are events here.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The buckets of all rates.
pub struct Rates {
    addresses: ArcSwapOption<Limiter>,
    /// By the names of keys.
    keys: Mutex<HashMap<String, Arc<Limiter>>>,
    ticks: Ticks,
    metrics: Arc<Metrics>,
}

/// Whose rate it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    Address,
    Key(String),
}

impl By {
    /// In metrics and in `RateLimit`.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Key(_) => "key",
        }
    }

    /// In sentences.
    fn rate(&self) -> String {
        match self {
            Self::Address => "the rate of your address (http.rate)".to_owned(),
            Self::Key(name) => format!("the rate of the key {name:?} (rate in http.auth.keys)"),
        }
    }
}

/// The bucket that a request takes from. It goes with the request, in its extensions.
struct Allowance {
    by: By,
    client: Client,
    limiter: Arc<Limiter>,
    standing: Standing,
    /// It has taken from it.
    is_paid: bool,
    /// So many of what it has taken are for its events.
    events: Option<NonZeroU32>,
}

/// Whether there is any rate. Otherwise nothing here is to be asked.
pub fn are_on(http: &HttpConfig) -> bool {
    http.rate.0.is_some() || http.auth.keys.has_rates()
}

impl Rates {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let ticks = Ticks::Since(Instant::now());
        Self { addresses: ArcSwapOption::empty(), keys: Mutex::default(), ticks, metrics }
    }

    /// Looks whether the request may come at all, and has it take its bucket along.
    ///
    /// # Errors
    /// What it was refused for before, or 429.
    pub fn admit(
        &self,
        request: &HttpRequest,
        http: &HttpConfig,
        sender: Result<Sender, Problem>,
    ) -> Result<Sender, Problem> {
        let (sender, allowance) = self.look(request.head(), http, sender, false);
        let mut extensions = request.extensions_mut();
        // In the place of its address's, which it had for as long as nobody knew whose it is.
        extensions.remove::<Allowance>();
        allowance.into_iter().for_each(|allowance| _ = extensions.insert(allowance));
        sender
    }

    /// The same where whose request it is stands in its body: until that is known it has the bucket of its address, from which
    /// it pays for what it is refused for.
    ///
    /// # Errors
    /// 429 where nothing is left for the address, and no key has a rate of its own.
    pub fn admit_unknown(&self, request: &HttpRequest, http: &HttpConfig) -> Result<(), Problem> {
        let (admitted, allowance) = self.look(request.head(), http, Ok(None), true);
        allowance.into_iter().for_each(|allowance| _ = request.extensions_mut().insert(allowance));
        admitted.map(drop)
    }

    /// Why a client that asks first is not to send its body, with the fields of the answer. `is_unknown` where its body is to say
    /// whose it is.
    pub fn turn_away(
        &self,
        head: &RequestHead,
        http: &HttpConfig,
        sender: Result<Sender, Problem>,
        is_unknown: bool,
    ) -> Option<(Problem, HeaderMap)> {
        let (sender, allowance) = self.look(head, http, sender, is_unknown);
        let mut fields = HeaderMap::new();
        allowance.iter().for_each(|allowance| allowance.write(&mut fields));
        Some((sender.err()?, fields))
    }

    fn look(
        &self,
        head: &RequestHead,
        http: &HttpConfig,
        sender: Result<Sender, Problem>,
        is_unknown: bool,
    ) -> (Result<Sender, Problem>, Option<Allowance>) {
        let key = sender.as_ref().ok().and_then(Option::as_ref).filter(|key| key.rate.is_some());
        let bucket = match key {
            Some(key) => key
                .rate
                .and_then(|limit| limit.0)
                .map(|rate| (By::Key(key.name.clone()), Client::Only, self.of_key(key, rate, http))),
            None => http
                .rate
                .0
                .map(|rate| (By::Address, http::client(head, &http.trusted_proxies).into(), self.of_addresses(rate))),
        };
        let Some((by, client, limiter)) = bucket else { return (sender, None) };
        let is_paid = sender.is_err();
        let verdict =
            if is_paid { limiter.take(client, NonZeroU32::MIN) } else { limiter.look(client, NonZeroU32::MIN) };
        let full = Standing { left: limiter.rate.burst.get(), seconds: 0 };
        let mut allowance = Allowance { by, client, limiter, standing: full, is_paid, events: None };
        let answer = match verdict {
            Verdict::Now(standing) => {
                allowance.standing = standing;
                sender
            }
            // It may be that of a key with a rate of its own.
            Verdict::In(_, standing) if is_unknown && http.auth.keys.have_own_rates() => {
                allowance.standing = standing;
                sender
            }
            // (A burst is at least one event.)
            Verdict::In(..) | Verdict::Never => Err(allowance.refuse(verdict, 1, &self.metrics)),
        };
        (answer, Some(allowance))
    }

    fn of_addresses(&self, rate: Rate) -> Arc<Limiter> {
        if let Some(limiter) = &*self.addresses.load()
            && limiter.rate == rate
        {
            return limiter.clone();
        }
        let tracked = self.metrics.rate_tracked_addresses.clone();
        let new = Arc::new(Limiter::of_many(rate, self.ticks.clone(), tracked));
        // Whoever comes first after a reload makes it, for all.
        let known = self.addresses.rcu(|known| match known {
            Some(limiter) if limiter.rate == rate => known.clone(),
            _ => Some(new.clone()),
        });
        known.filter(|limiter| limiter.rate == rate).unwrap_or(new)
    }

    fn of_key(&self, key: &HttpKey, rate: Rate, http: &HttpConfig) -> Arc<Limiter> {
        let mut keys = self.keys.lock();
        if let Some(limiter) = keys.get(&key.name).filter(|limiter| limiter.rate == rate) {
            return limiter.clone();
        }
        // Those of keys that are gone, when there is another anyway.
        let names: std::collections::HashSet<&str> = http.auth.keys.iter().map(|key| key.name.as_str()).collect();
        keys.retain(|name, _| names.contains(name.as_str()));
        let limiter = Arc::new(Limiter::of_one(rate, self.ticks.clone()));
        keys.insert(key.name.clone(), limiter.clone());
        limiter
    }

    /// Takes what the events of a request cost, before anything of them is kept: what is wrong counts as well.
    ///
    /// # Errors
    /// 429 when they are more than may come now, which costs nothing: who comes again too early is not to wait for longer. 413 when they
    /// are more than may ever come at once.
    pub fn charge(&self, request: &HttpRequest, checked: &Checked) -> Result<(), Problem> {
        let mut extensions = request.extensions_mut();
        let Some(allowance) = extensions.get_mut::<Allowance>() else { return Ok(()) };
        let events = checked.accepted.len() + checked.errors.len();
        let count = NonZeroU32::new(u32::try_from(events).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN);
        match allowance.limiter.take(allowance.client, count) {
            Verdict::Now(standing) => {
                (allowance.standing, allowance.is_paid, allowance.events) = (standing, true, Some(count));
                Ok(())
            }
            verdict => Err(allowance.refuse(verdict, count.get(), &self.metrics)),
        }
    }
}

/// Gives back what the events of a request have cost: nothing of it was stored, for reasons that are not its sender's.
pub fn give_back(request: &HttpRequest) {
    let mut extensions = request.extensions_mut();
    let Some(allowance) = extensions.get_mut::<Allowance>() else { return };
    if let Some(events) = allowance.events.take() {
        allowance.standing = allowance.limiter.give_back(allowance.client, events);
    }
}

/// Writes into an answer how the bucket of its request stands. A refusal for what the request is costs one event, where nothing
/// was paid yet.
pub fn write(request: &HttpRequest, status: StatusCode, head: &mut HeaderMap) {
    let mut extensions = request.extensions_mut();
    let Some(allowance) = extensions.get_mut::<Allowance>() else { return };
    if !allowance.is_paid && status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
        allowance.is_paid = true;
        if let Verdict::Now(standing) = allowance.limiter.take(allowance.client, NonZeroU32::MIN) {
            allowance.standing = standing;
        }
    }
    allowance.write(head);
}

impl Allowance {
    /// What so many events are refused with, at least one of them for the first time.
    fn refuse(&mut self, verdict: Verdict, events: u32, metrics: &Metrics) -> Problem {
        let (whose, rate) = (self.by.rate(), self.limiter.rate);
        let (wait, standing) = match verdict {
            Verdict::In(wait, standing) => (wait, standing),
            // Meanwhile there is room again.
            Verdict::Now(standing) => (Duration::ZERO, standing),
            Verdict::Never => {
                let detail = format!(
                    "this request has {events} events, and {whose} lets {} come at once ({rate}): send them in smaller requests",
                    rate.burst
                );
                self.count(events, metrics);
                return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail);
            }
        };
        self.standing = standing;
        self.count(events, metrics);
        let seconds = u32::try_from(whole_seconds(wait)).unwrap_or(u32::MAX);
        let detail = format!(
            "{whose} is used up ({rate}, {} events may come now): nothing of this request was stored, send it again in {seconds} s",
            standing.left
        );
        Problem { retry_after: Some(seconds), ..Problem::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    fn count(&self, events: u32, metrics: &Metrics) {
        let by = ByLabel { by: self.by.as_str() };
        metrics.rate_limited.get_or_create(&by).inc();
        metrics.rate_limited_events.get_or_create(&by).inc_by(events.into());
    }

    fn write(&self, head: &mut HeaderMap) {
        let (by, Standing { left, seconds }) = (self.by.as_str(), self.standing);
        let fields = [
            (RATE_LIMIT_POLICY, format!("\"{by}\";q={};w={}", self.limiter.rate.burst, self.limiter.window())),
            (RATE_LIMIT, format!("\"{by}\";r={left};t={seconds}")),
        ];
        for (name, value) in fields {
            // Digits and quotation marks always are a value.
            HeaderValue::try_from(value).into_iter().for_each(|value| _ = head.insert(name.clone(), value));
        }
    }
}

//! What a scraper gets of `/metrics`: OpenMetrics, or Prometheus's older text format where that is preferred, compressed
//! where that is taken.

use std::{borrow::Cow, collections::BTreeSet, io::Write};

use actix_web::http::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderName};
use flate2::{Compression, write::GzEncoder};

/// A text format of Prometheus's world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, which all scrapers of the last years ask for, and what is answered where neither is asked for.
    OpenMetrics,
    /// Of 2014, and still what many agents ask for alone.
    Text,
}

impl Format {
    /// The one that these headers prefer (RFC 9110, 12.5.1).
    pub fn of(headers: &HeaderMap) -> Self {
        let accept = list(headers, &ACCEPT);
        let weight = |media: &str, versions: &[&str]| weight(&accept, |range| specificity(range, media, versions));
        // Scrapers name OpenMetrics's versions, and read each as the latest.
        let openmetrics = weight("application/openmetrics-text", &[]);
        let text = weight("text/plain", &["0.0.4"]);
        if text > openmetrics { Self::Text } else { Self::OpenMetrics }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// `metrics`, as OpenMetrics, in this format.
    pub fn write(self, metrics: String) -> String {
        match self {
            Self::OpenMetrics => metrics,
            Self::Text => text(&metrics),
        }
    }
}

/// Counters are declared by the names of their samples there, and there is no end.
fn text(openmetrics: &str) -> String {
    let counters: BTreeSet<&str> =
        openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(openmetrics.len() + 1024);
    for line in openmetrics.lines().filter(|line| *line != "# EOF") {
        let declared = ["# HELP ", "# TYPE "].iter().find_map(|kind| {
            let (name, rest) = line.strip_prefix(kind)?.split_once(' ')?;
            counters.contains(name).then(|| format!("{kind}{name}_total {rest}"))
        });
        text.push_str(&declared.map_or(Cow::Borrowed(line), Cow::Owned));
        text.push('\n');
    }
    text
}

/// zlib-rs's first level makes a quarter more of `/metrics`.
const FAST: Compression = Compression::new(3);

/// The body in gzip, where these headers take it.
pub fn gzip(headers: &HeaderMap, body: &str) -> Option<Vec<u8>> {
    takes_gzip(headers).then(|| compress(body, FAST))?
}

/// Whether these headers take gzip.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let codings = list(headers, &ACCEPT_ENCODING);
    let taken = weight(&codings, |coding| match coding.split(';').next().map(str::trim) {
        Some("*") => Some(0),
        Some(coding) if ["gzip", "x-gzip"].iter().any(|gzip| coding.eq_ignore_ascii_case(gzip)) => Some(1),
        _ => None,
    });
    taken > 0
}

/// The body in gzip.
pub fn compress(body: &str, level: Compression) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), level);
    encoder.write_all(body.as_bytes()).and_then(|()| encoder.finish()).ok()
}

/// The elements of a field that is a list, on however many lines it stands.
pub fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|element| element.trim().to_owned()).collect()
}

/// In thousandths, that of the most specific element that matches; 0 where none does.
pub fn weight(elements: &[String], specificity: impl Fn(&str) -> Option<usize>) -> u32 {
    let weights = elements.iter().filter_map(|element| {
        let mut parameters = element.split(';').skip(1).filter_map(|parameter| parameter.trim().split_once('='));
        let weight = parameters.find_map(|(name, weight)| name.eq_ignore_ascii_case("q").then_some(weight));
        let weight = weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0));
        Some((specificity(element)?, (weight.clamp(0.0, 1.0) * 1000.0) as u32))
    });
    weights.max().map_or(0, |(_, weight)| weight)
}

/// How closely a media range is this type, in one of these versions if it names one and there are some; `None` where it is
/// not.
pub fn specificity(range: &str, media: &str, versions: &[&str]) -> Option<usize> {
    let mut parts = range.split(';').map(str::trim);
    let named = parts.next()?;
    let mut parameters = parts.filter_map(|parameter| parameter.split_once('='));
    let version =
        parameters.find_map(|(name, value)| name.eq_ignore_ascii_case("version").then_some(value.trim_matches('"')));
    if version.is_some_and(|version| !versions.is_empty() && !versions.contains(&version)) {
        return None;
    }
    let kind = media.split('/').next().unwrap_or(media);
    match named {
        "*/*" => Some(0),
        _ if named.strip_suffix("/*").is_some_and(|named| named.eq_ignore_ascii_case(kind)) => Some(1),
        _ => named.eq_ignore_ascii_case(media).then_some(2 + usize::from(version.is_some())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use actix_web::http::header::HeaderValue;
    use flate2::read::GzDecoder;

    use super::*;
    use crate::{metrics::Metrics, names::SinkName, position::Partition};

    fn headers(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| headers.append(name.clone(), HeaderValue::from_static(value)));
        headers
    }

    #[test]
    fn the_text_format_is_for_those_who_prefer_it() {
        for (accept, expected) in [
            // Prometheus 2.0, 2.50 and 3.0.
            (
                "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;\
                 escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,text/plain;version=0.0.4;\
                 q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Text),
            ("text/plain; version=0.0.4", Format::Text),
            ("text/plain", Format::Text),
            ("Text/*; q=0.4, application/openmetrics-text; q=0.3", Format::Text),
            ("text/plain;version=\"0.0.4\", application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=0, */*", Format::Text),
            ("text/plain;version=1.0.0", Format::OpenMetrics),
            ("text/html, application/xml;q=0.9, */*;q=0.8", Format::OpenMetrics),
            ("*/*", Format::OpenMetrics),
            ("", Format::OpenMetrics),
        ] {
            assert_eq!(Format::of(&headers(ACCEPT, &[accept])), expected, "{accept}");
        }
        let lines = headers(ACCEPT, &["application/openmetrics-text;q=0.1", "text/plain"]);
        assert_eq!(Format::of(&lines), Format::Text);
        assert_eq!(Format::of(&HeaderMap::new()), Format::OpenMetrics);
    }

    #[test]
    fn in_the_text_format_counters_are_declared_as_they_are_sampled() {
        let metrics = Metrics::default();
        metrics.events_accepted.inc();
        metrics.set_lag(SinkName::Archive, "events", Partition(3), 12);
        let text = Format::Text.write(metrics.encode());
        let declared: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        for line in [
            "ingestd_events_accepted_total counter",
            "ingestd_lag_records gauge",
            "ingestd_flush_duration_seconds histogram",
        ] {
            assert!(declared.contains(line), "{line}: {text}");
        }
        assert!(text.contains("# HELP ingestd_events_accepted_total ") && !text.contains("# EOF"), "{text}");
        assert!(text.contains("\ningestd_events_accepted_total 1\n") && text.ends_with('\n'), "{text}");
        // Each sample is of a family that is declared.
        for sample in text.lines().filter(|line| !line.starts_with('#')) {
            let name = sample.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_declared =
                |name: &str, kinds: &[&str]| kinds.iter().any(|kind| declared.contains(&*format!("{name} {kind}")));
            let of_histogram = family.is_some_and(|family| is_declared(family, &["histogram"]));
            assert!(of_histogram || is_declared(name, &["counter", "gauge"]), "{sample}");
        }
    }

    #[test]
    fn who_takes_gzip_gets_it() {
        for (encodings, taken) in [
            ("gzip", true),
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.8", true),
            ("x-gzip", true),
            ("*", true),
            ("identity, gzip;q=0", false),
            ("*;q=0", false),
            ("*, gzip;q=0.0", false),
            ("deflate", false),
            ("", false),
        ] {
            let gzipped = gzip(&headers(ACCEPT_ENCODING, &[encodings]), "metrics");
            let mut text = String::new();
            if let Some(gzipped) = &gzipped {
                GzDecoder::new(&gzipped[..]).read_to_string(&mut text).unwrap();
            }
            assert_eq!((gzipped.is_some(), &*text), (taken, if taken { "metrics" } else { "" }), "{encodings}");
        }
    }
}

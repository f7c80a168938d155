//! Decimal numbers of bounded size, and their sums: exact, and the same in whatever order they are added.

use std::{cmp::Ordering, fmt};

/// Places after the point.
const PLACES: usize = 17;
/// 10^17: a unit in these places.
const ONE: i64 = 100_000_000_000_000_000;
/// Digits before the point: the magnitude is below 10^15.
const WHOLE_DIGITS: usize = 15;

/// A number with at most 17 places after the point and a magnitude below 10^15: what programs print for doubles of ordinary
/// size. Both parts have its sign.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal {
    whole: i64,
    /// In units of 10^-17.
    fraction: i64,
}

/// What a JSON value is to a measure of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numeric {
    Exact(Decimal),
    /// A number that is larger, or written with more places.
    Inexact,
    /// Another value.
    No,
}

impl Numeric {
    /// Reads a JSON text.
    pub fn read(json: &str) -> Self {
        match json.as_bytes().first() {
            Some(b'-' | b'0'..=b'9') => Decimal::read(json).map_or(Self::Inexact, Self::Exact),
            _ => Self::No,
        }
    }
}

impl Decimal {
    /// A JSON number; `None` where it is too large, or has too many places.
    pub fn read(number: &str) -> Option<Self> {
        let (is_negative, magnitude) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
        let bytes = magnitude.as_bytes();
        let (whole, fraction) = if let Some(at) = memchr::memchr2(b'e', b'E', bytes) {
            let (mantissa, exponent) = (&magnitude[..at], &magnitude[at + 1..]);
            let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
            shifted(whole, fraction, exponent)?
        } else {
            let (whole, fraction) = bytes.split_at(bytes.iter().position(|byte| *byte == b'.').unwrap_or(bytes.len()));
            (digits(whole, WHOLE_DIGITS)?, places(fraction.get(1..).unwrap_or_default())?)
        };
        let sign = if is_negative { -1 } else { 1 };
        Some(Self { whole: sign * whole, fraction: sign * fraction })
    }

    /// The parts of a number whose parts were kept; `None` where they are those of no such number.
    pub fn of_parts(whole: i64, fraction: i64) -> Option<Self> {
        let is_whole = whole.unsigned_abs() < 10_u64.pow(15);
        let is_fraction = fraction.unsigned_abs() < ONE.unsigned_abs();
        (is_whole && is_fraction && whole.signum() * fraction.signum() >= 0).then_some(Self { whole, fraction })
    }

    pub fn parts(self) -> (i64, i64) {
        (self.whole, self.fraction)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_negative = self.whole < 0 || self.fraction < 0;
        write(f, is_negative, self.whole.unsigned_abs().into(), self.fraction.unsigned_abs())
    }
}

fn write(f: &mut fmt::Formatter<'_>, is_negative: bool, whole: u128, fraction: u64) -> fmt::Result {
    if is_negative {
        f.write_str("-")?;
    }
    write!(f, "{whole}")?;
    if fraction == 0 {
        return Ok(());
    }
    let places = format!("{fraction:0PLACES$}");
    write!(f, ".{}", places.trim_end_matches('0'))
}

/// The value of at most so many digits.
fn digits(text: &[u8], most: usize) -> Option<i64> {
    if text.len() > most {
        return None;
    }
    text.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

/// The value of digits behind the point.
fn places(text: &[u8]) -> Option<i64> {
    let missing = u32::try_from(PLACES.checked_sub(text.len())?).ok()?;
    digits(text, PLACES).map(|value| value * 10_i64.pow(missing))
}

/// Exponents from here on lead out of any range, however long the digits are.
const FAR: u64 = 1 << 40;

/// The parts of a number with an exponent. Zeros at the end of its digits are no places.
fn shifted(whole: &str, fraction: &str, exponent: &str) -> Option<(i64, i64)> {
    let all = format!("{whole}{fraction}");
    let leading = all.len() - all.trim_start_matches('0').len();
    let significant = all[leading..].trim_end_matches('0');
    if significant.is_empty() {
        return Some((0, 0));
    }
    // The point's place in `significant`, from its left end. An exponent of more digits than these is too large, whatever it is.
    let exponent: i64 =
        exponent.trim_start_matches('+').parse().ok().filter(|exponent: &i64| exponent.abs_diff(0) < FAR)?;
    let point = i64::try_from(whole.len()).ok()? + exponent - i64::try_from(leading).ok()?;
    let length = i64::try_from(significant.len()).ok()?;
    if point > WHOLE_DIGITS as i64 || length - point > PLACES as i64 {
        return None;
    }
    let (before, behind) = match usize::try_from(point) {
        Ok(point) if point >= significant.len() => (format!("{significant:0<point$}"), String::new()),
        Ok(point) => (significant[..point].to_owned(), significant[point..].to_owned()),
        Err(_) => (String::new(), format!("{}{significant}", "0".repeat(point.unsigned_abs() as usize))),
    };
    Some((digits(before.as_bytes(), WHOLE_DIGITS)?, places(behind.as_bytes())?))
}

/// Compares two JSON numbers, of whatever size and precision.
pub fn compare(a: &str, b: &str) -> Ordering {
    if let (Some(a), Some(b)) = (Decimal::read(a), Decimal::read(b)) {
        return a.cmp(&b);
    }
    let (a, b) = (Digits::of(a), Digits::of(b));
    let of_magnitude = a.compare_magnitude(&b);
    match (a.sign(), b.sign()) {
        (x, y) if x != y => x.cmp(&y),
        (-1, _) => of_magnitude.reverse(),
        _ => of_magnitude,
    }
}

/// A number as ±0.digits × 10^exponent, without zeros at either end of the digits.
struct Digits {
    is_negative: bool,
    digits: String,
    exponent: i64,
}

impl Digits {
    fn of(number: &str) -> Self {
        let (is_negative, magnitude) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
        let (mantissa, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        let leading = (all.len() - digits.len()) as i64;
        // An exponent that is no such integer is far away on its side.
        let far = if exponent.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 };
        let exponent = exponent.trim_start_matches('+').parse::<i64>().unwrap_or(far).clamp(i64::MIN / 2, i64::MAX / 2);
        let exponent = exponent + whole.len() as i64 - leading;
        Self { is_negative, digits: digits.trim_end_matches('0').to_owned(), exponent }
    }

    fn sign(&self) -> i8 {
        match (self.digits.is_empty(), self.is_negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }

    fn compare_magnitude(&self, other: &Self) -> Ordering {
        self.exponent.cmp(&other.exponent).then_with(|| self.digits.cmp(&other.digits))
    }
}

/// A sum of decimals. That of 10^10 has at most 42 digits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    whole: i128,
    /// In units of 10^-17; carried only when it is looked at.
    fraction: i128,
}

impl Sum {
    pub fn add(&mut self, number: Decimal) {
        self.whole += i128::from(number.whole);
        self.fraction += i128::from(number.fraction);
    }

    pub fn merge(&mut self, other: Self) {
        self.whole = self.whole.saturating_add(other.whole);
        self.fraction = self.fraction.saturating_add(other.fraction);
    }

    /// With a fraction from 0 on and below one: one form of each sum.
    fn carried(self) -> (i128, i128) {
        let one = i128::from(ONE);
        (self.whole.saturating_add(self.fraction.div_euclid(one)), self.fraction.rem_euclid(one))
    }

    pub fn of_parts(whole: i128, fraction: u64) -> Option<Self> {
        (fraction < ONE.unsigned_abs()).then(|| Self { whole, fraction: fraction.into() })
    }

    pub fn parts(self) -> (i128, u64) {
        let (whole, fraction) = self.carried();
        // It is below one.
        (whole, u64::try_from(fraction).unwrap_or_default())
    }

    /// The sum divided by how many there are, rounded to 17 places, halves upwards. `None` of none.
    pub fn average(self, count: u64) -> Option<Self> {
        let count = i128::from(count);
        if count == 0 {
            return None;
        }
        let (whole, fraction) = self.carried();
        let rest = whole.rem_euclid(count).checked_mul(i128::from(ONE))?.checked_add(fraction)?;
        let doubled = rest.checked_mul(2)?.checked_add(count)?;
        Some(Self { whole: whole.div_euclid(count), fraction: doubled.div_euclid(2 * count) })
    }

    /// As near as a double is.
    pub fn to_f64(self) -> f64 {
        let (whole, fraction) = self.carried();
        whole as f64 + fraction as f64 / ONE as f64
    }
}

impl PartialEq for Sum {
    fn eq(&self, other: &Self) -> bool {
        self.carried() == other.carried()
    }
}

impl Eq for Sum {}

impl PartialOrd for Sum {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sum {
    fn cmp(&self, other: &Self) -> Ordering {
        self.carried().cmp(&other.carried())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = self.parts();
        match (whole < 0, fraction) {
            (true, 1..) => write(f, true, (whole + 1).unsigned_abs(), ONE.unsigned_abs() - fraction),
            (is_negative, _) => write(f, is_negative, whole.unsigned_abs(), fraction),
        }
    }
}

impl From<Decimal> for Sum {
    fn from(number: Decimal) -> Self {
        Self { whole: number.whole.into(), fraction: number.fraction.into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn read(text: &str) -> String {
        match Numeric::read(text) {
            Numeric::Exact(number) => number.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_number_counts_by_its_digits_and_places() {
        for (text, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("12.50", "12.5"),
            ("-12.05", "-12.05"),
            ("-0.5", "-0.5"),
            ("999999999999999.99999999999999999", "999999999999999.99999999999999999"),
            ("1000000000000000", "Inexact"),
            ("-1000000000000000", "Inexact"),
            ("0.00000000000000001", "0.00000000000000001"),
            ("0.000000000000000001", "Inexact"),
            ("0.000000000000000000", "Inexact"),
            ("1e14", "100000000000000"),
            ("1E+14", "100000000000000"),
            ("1e15", "Inexact"),
            ("0.001e18", "Inexact"),
            ("0.001e17", "100000000000000"),
            ("1e-17", "0.00000000000000001"),
            ("1e-18", "Inexact"),
            ("12.5e-1", "1.25"),
            ("12.5e1", "125"),
            ("1.25e3", "1250"),
            ("0e999999999999999999999", "0"),
            ("1e999999999999999999999", "Inexact"),
            ("1e-999999999999999999999", "Inexact"),
            ("1e-9223372036854775808", "Inexact"),
            ("1e-9223372036854775807", "Inexact"),
            ("1e9223372036854775807", "Inexact"),
            ("1e-1099511627776", "Inexact"),
            ("1.0E-17", "0.00000000000000001"),
            ("10e-18", "0.00000000000000001"),
            ("-120.0e-1", "-12"),
            ("9223372036854775807", "Inexact"),
            ("0.1", "0.1"),
            ("2.2250738585072014e-308", "Inexact"),
            ("\"1\"", "No"),
            ("true", "No"),
            ("null", "No"),
            ("[1]", "No"),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_of_any_size_are_compared_exactly() {
        let ascending = [
            "-1e9223372036854775808",
            "-1e400",
            "-123456789012345678901234567890.5",
            "-123456789012345678901234567890.4",
            "-1",
            "-0.1",
            "0",
            "1e-9223372036854775808",
            "1e-400",
            "0.09999999999999999999999",
            "0.1",
            "0.10000000000000000000001",
            "99999999999999999999",
            "1e20",
            "100000000000000000000.1",
            "1e400",
        ];
        for (at, a) in ascending.iter().enumerate() {
            for (other, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a} {b}");
            }
        }
        assert_eq!(compare("-0e5", "0.000"), Ordering::Equal);
        assert_eq!(compare("1000000000000000000000e-1", "1e20"), Ordering::Equal);
    }

    #[test]
    fn the_largest_sum_is_exact() {
        let largest = Decimal::read("999999999999999.99999999999999999").unwrap();
        let mut sum = Sum::from(largest);
        // 2^33 and more of them.
        for _ in 0..33 {
            sum.merge(sum);
        }
        assert_eq!(sum.to_string(), "8589934591999999999999999.99999991410065408");
        assert_eq!(sum.average(1 << 33).unwrap().to_string(), largest.to_string());
    }

    #[test]
    fn averages_are_rounded_to_17_places() {
        let sum = |text: &str| Sum::from(Decimal::read(text).unwrap());
        let average = |text, count| sum(text).average(count).map(|average| average.to_string());
        assert_eq!(average("1", 3).as_deref(), Some("0.33333333333333333"));
        assert_eq!(average("2", 3).as_deref(), Some("0.66666666666666667"));
        assert_eq!(average("-1", 3).as_deref(), Some("-0.33333333333333333"));
        assert_eq!(average("6", 3).as_deref(), Some("2"));
        assert_eq!(average("-7.5", 3).as_deref(), Some("-2.5"));
        assert_eq!(average("6", 0), None);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_integers_in_any_order(numbers in vec((-10_i128.pow(32) + 1)..10_i128.pow(32), 1..50)) {
            let one = i128::from(ONE);
            let decimal = |n: i128| {
                let sign = if n < 0 { "-" } else { "" };
                let text = format!("{sign}{}.{:017}", n.abs() / one, n.abs() % one);
                Decimal::read(&text).unwrap()
            };
            let (mut forth, mut back) = (Sum::default(), Sum::default());
            numbers.iter().for_each(|n| forth.add(decimal(*n)));
            numbers.iter().rev().for_each(|n| back.merge(decimal(*n).into()));
            prop_assert_eq!(forth, back);
            let total: i128 = numbers.iter().sum();
            let (whole, fraction) = forth.parts();
            prop_assert_eq!((whole, i128::from(fraction)), (total.div_euclid(one), total.rem_euclid(one)));
            prop_assert_eq!(Sum::of_parts(whole, fraction), Some(forth));
            let sorted = numbers.iter().map(|n| decimal(*n)).min().zip(numbers.iter().min().copied());
            prop_assert!(sorted.is_some_and(|(least, n)| least == decimal(n)));
        }

        #[test]
        fn doubles_of_ordinary_size_are_exact_and_print_as_they_were(double in -1e15_f64..1e15) {
            let text = serde_json::to_string(&double).unwrap();
            let read = Decimal::read(&text);
            let places = text.split_once('.').map_or(0, |(_, places)| places.len());
            if !text.contains('e') && places <= PLACES {
                let again: f64 = read.unwrap().to_string().parse().unwrap();
                prop_assert_eq!(again, double);
            }
        }
    }
}

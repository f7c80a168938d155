#!/usr/bin/env bash
# org.apache.kafka:connect-api 4.1.1 (Maven Central), SimpleHeaderConverter: Connect's default for `header.converter`. Needs java 17
# and mvn.
#
# Headers are bytes, and most senders put text into them: ids, versions, times. Connect's default converter guesses a type for each
# text, for each record anew, and what a sink or a transformation gets, and what is written back from it, is the guessed value and
# no more the header. Leading zeros and a plus go, 3.10 becomes 3.1, of a time of day the minutes are lost,
# and a trace id in hex whose digits happen to read as a number with an exponent (one `e`, else 0-9) comes out as another one. One
# header of a topic is then an INT8 in one record and a STRING in the next. `org.apache.kafka.connect.storage.StringConverter` as
# `header.converter` leaves each of them as it is.
#
# Seen: `0012345 -> 12345 (INT16); 10:30 -> 10 (INT8); 3.10 -> 3.1 (FLOAT32); +15551234567 -> 15551234567 (INT64); 1234567890123e45
# -> 1.234567890123E57 (FLOAT64); 00f067aa0ba902b7 -> 00f067aa0ba902b7 (STRING)`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >pom.xml <<'XML'
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>finding</artifactId><version>1</version>
<packaging>pom</packaging><dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>connect-api</artifactId>
<version>4.1.1</version></dependency></dependencies></project>
XML
mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=libs
cat >Finding.java <<'JAVA'
import static java.nio.charset.StandardCharsets.UTF_8;

import java.util.LinkedHashMap;
import java.util.Map;
import org.apache.kafka.connect.storage.SimpleHeaderConverter;
import org.apache.kafka.connect.storage.StringConverter;

public class Finding {
    public static void main(String[] arguments) throws Exception {
        var known = new LinkedHashMap<String, String>();
        known.put("0012345", "12345 (INT16)");
        known.put("10:30", "10 (INT8)");
        known.put("3.10", "3.1 (FLOAT32)");
        known.put("+15551234567", "15551234567 (INT64)");
        known.put("1234567890123e45", "1.234567890123E57 (FLOAT64)");
        known.put("00f067aa0ba902b7", "00f067aa0ba902b7 (STRING)");
        var seen = new LinkedHashMap<String, String>();
        try (var converter = new SimpleHeaderConverter(); var strings = new StringConverter()) {
            converter.configure(Map.of());
            strings.configure(Map.of("converter.type", "header"));
            for (var header : known.keySet()) {
                var value = converter.toConnectHeader("events", "header", header.getBytes(UTF_8));
                var again = new String(converter.fromConnectHeader("events", "header", value.schema(), value.value()), UTF_8);
                var kept = strings.toConnectHeader("events", "header", header.getBytes(UTF_8)).value();
                if (!kept.equals(header)) {
                    throw new AssertionError("StringConverter makes " + kept + " of " + header);
                }
                seen.put(header, again + " (" + value.schema().type() + ")");
            }
        }
        var said = new StringBuilder();
        seen.forEach((header, value) -> said.append(said.isEmpty() ? "" : "; ").append(header).append(" -> ").append(value));
        System.out.println(said);
        System.exit(seen.equals(known) ? 0 : 1);
    }
}
JAVA
java -cp 'libs/*' Finding.java 2>log

#!/usr/bin/env bash
# log4j-core 2.26.1 (Maven Central), an `Http` appender as it stands. Needs java 17 and mvn.
#
# Each event that is answered 503 is lost, as the appender does not send again, and the program is told of none (`ignoreExceptions`
# is true by default); what is left is a line on stderr, and that comes for the first four only, and then for five minutes no more,
# without a count and without the event. Who watches stderr sees four losses of a thousand, and the same four whether the outage
# lasted a second or four minutes.
#
# Seen: `events 1000, requests 1000, stored 0, thrown 0, lines of ERROR 4, of them with the event's text 0`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >pom.xml <<'XML'
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>finding</artifactId><version>1</version>
<packaging>pom</packaging><dependencies><dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId>
<version>2.26.1</version></dependency></dependencies></project>
XML
mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=libs >log
cat >log4j2.xml <<'XML'
<Configuration>
  <Appenders><Http name="http" url="http://127.0.0.1:29693/events"><PatternLayout pattern="%m"/></Http></Appenders>
  <Loggers><Root level="info"><AppenderRef ref="http"/></Root></Loggers>
</Configuration>
XML
cat >Finding.java <<'JAVA'
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.logging.log4j.LogManager;

public class Finding {
    public static void main(String[] arguments) throws Exception {
        var requests = new AtomicInteger();
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", 29693), 0);
        server.createContext("/events", request -> {
            request.getRequestBody().readAllBytes();
            requests.incrementAndGet();
            request.sendResponseHeaders(503, -1);
            request.close();
        });
        server.start();
        var thrown = 0;
        for (var number = 0; number < 1000; number += 1) {
            try {
                LogManager.getLogger("finding").info("order {}", number);
            } catch (RuntimeException refused) {
                thrown += 1;
            }
        }
        server.stop(0);
        System.out.printf("events 1000, requests %d, stored 0, thrown %d", requests.get(), thrown);
    }
}
JAVA
java -cp 'libs/*:.' Finding.java >seen 2>stderr
lines=$(grep -c ' ERROR ' stderr || true)
with=$(grep -c 'order [0-9]' stderr || true)
seen="$(<seen), lines of ERROR $lines, of them with the event's text $with"
echo "$seen"
[ "$seen" = "events 1000, requests 1000, stored 0, thrown 0, lines of ERROR 4, of them with the event's text 0" ]

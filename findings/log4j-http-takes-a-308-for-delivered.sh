#!/usr/bin/env bash
# log4j-core 2.26.1 (Maven Central), an `Http` appender with `ignoreExceptions="false"`. Needs java 17 and mvn.
#
# An appender that was given `http` where a proxy wants `https`, or a path that moved, follows no redirect. At 301, 302, 303 and 307
# it says so: the call throws, a `Failover` writes to its file. At 308, which is the answer of many proxies to plain HTTP, it sends
# the event to where nobody keeps it, does not go where it is sent, and all is well: nothing is thrown, no line is on stderr, and a
# `Failover` keeps nothing. (The Java below it knows no 308 and throws at 400 and above only, and the appender takes each answer
# without an exception for a success.)
#
# Seen: `308: nothing; 301: thrown; 302: thrown; 303: thrown; 307: thrown; where they lead: 0 requests`
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
  <Appenders>
    <Http name="http" url="http://127.0.0.1:29692/events" ignoreExceptions="false"><PatternLayout pattern="%m"/></Http>
  </Appenders>
  <Loggers><Root level="info"><AppenderRef ref="http"/></Root></Loggers>
</Configuration>
XML
cat >Finding.java <<'JAVA'
import com.sun.net.httpserver.HttpServer;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.logging.log4j.LogManager;

public class Finding {
    public static void main(String[] arguments) throws Exception {
        var followed = new AtomicInteger();
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", 29692), 0);
        server.createContext("/events", request -> {
            var status = Integer.parseInt(new String(request.getRequestBody().readAllBytes()));
            request.getResponseHeaders().set("Location", "http://127.0.0.1:29692/moved");
            request.sendResponseHeaders(status, -1);
            request.close();
        });
        server.createContext("/moved", request -> {
            followed.incrementAndGet();
            request.sendResponseHeaders(200, -1);
            request.close();
        });
        server.start();
        var lines = new ByteArrayOutputStream();
        System.setErr(new PrintStream(lines, true));
        var logger = LogManager.getLogger("finding");
        var seen = new ArrayList<String>();
        for (var status : List.of(308, 301, 302, 303, 307)) {
            lines.reset();
            var outcome = status + ": nothing";
            try {
                logger.info(status);
            } catch (RuntimeException refused) {
                outcome = status + ": thrown";
            }
            seen.add(outcome);
            if (status == 308 && lines.size() > 0) {
                seen.add("told on stderr");
            }
        }
        server.stop(0);
        System.out.println(String.join("; ", seen) + "; where they lead: " + followed.get() + " requests");
        var known = List.of("308: nothing", "301: thrown", "302: thrown", "303: thrown", "307: thrown");
        System.exit(seen.equals(known) && followed.get() == 0 ? 0 : 1);
    }
}
JAVA
java -cp 'libs/*:.' Finding.java 2>>log

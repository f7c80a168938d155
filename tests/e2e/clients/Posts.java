// Posts events one after the other with one HttpClient, as the JDK makes it: each request asks for HTTP/2 (`Upgrade: h2c`).
// Prints how many were answered with 200 over HTTP/1.1, and the first failure.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Posts {
    public static void main(String[] arguments) throws InterruptedException {
        URI url = URI.create(arguments[0]);
        int count = Integer.parseInt(arguments[1]);
        HttpClient client = HttpClient.newHttpClient();
        int taken = 0;
        String failure = "none";
        for (int n = 0; n < count; n++) {
            String event = "{\"type\":\"posted\",\"event_id\":\"java-" + n + "\"}";
            HttpRequest request = HttpRequest.newBuilder(url).POST(HttpRequest.BodyPublishers.ofString(event)).build();
            try {
                HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
                if (answer.statusCode() == 200 && answer.version() == HttpClient.Version.HTTP_1_1) {
                    taken++;
                } else {
                    failure = answer.toString();
                }
            } catch (java.io.IOException error) {
                failure = error.toString();
            }
        }
        System.out.println(taken + " taken, failure: " + failure);
        System.exit(0);
    }
}

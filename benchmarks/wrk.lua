-- wrk -s wrk.lua URL -- FILE NAME VALUE…: posts the file with these headers, and prints what it measured as JSON.
function init(args)
    local file = assert(io.open(args[1], "rb"))
    wrk.method = "POST"
    wrk.body = file:read("*a")
    file:close()
    for index = 2, #args, 2 do
        wrk.headers[args[index]] = args[index + 1]
    end
end

function done(summary, latency)
    local errors = summary.errors
    local function milliseconds(share)
        return summary.requests > 0 and latency:percentile(share) / 1e3 or 0
    end
    io.write(string.format(
        '\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "status": %d, "broken": %d, "timeout": %d}\n',
        summary.requests, summary.duration / 1e6, milliseconds(50), milliseconds(99),
        errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
